// Plug-ins register themselves by name from their own file:
//
//   static const Register<Codec> kFp16(Codec{.name = "fp16", ...});
//
// An entry type T has `std::string name`. Registration happens during static initialisation and lookups
// after it, so there is no lock. Link plug-ins as objects: a static library would drop them.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace pycomm {

template <class T>
class Registry {
 public:
  static Registry& instance() {
    static Registry registry;
    return registry;
  }

  void add(T entry) {
    if (find(entry.name)) throw Error(ErrorKind::internal, text("'", entry.name, "' is registered twice"));
    owned_.push_back(std::make_unique<const T>(std::move(entry)));
    entries_.push_back(owned_.back().get());
    std::sort(entries_.begin(), entries_.end(), [](auto* a, auto* b) { return a->name < b->name; });
  }

  const T* find(std::string_view name) const {
    for (auto& entry : entries_)
      if (entry->name == name) return entry;
    return nullptr;
  }

  // Throws InvalidArgument that lists the known names.
  const T& get(std::string_view name, std::string_view kind) const {
    if (const T* entry = find(name)) return *entry;
    throw InvalidArgument(text("unknown ", kind, " '", name, "'; known: ", names()));
  }

  // In order of name.
  const std::vector<const T*>& all() const { return entries_; }

  std::string names() const {
    std::string out;
    for (auto& entry : entries_) out += (out.empty() ? "" : ", ") + entry->name;
    return out;
  }

 private:
  std::vector<std::unique_ptr<const T>> owned_;
  std::vector<const T*> entries_;
};

template <class T>
struct Register {
  explicit Register(T entry) { Registry<T>::instance().add(std::move(entry)); }
};

}  // namespace pycomm
