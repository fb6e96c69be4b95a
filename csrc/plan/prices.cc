#include "plan/prices.h"

#include "plan/links.h"

namespace pycomm {

double* Prices::find(const std::string& name) {
  const std::map<std::string, double*> own = {
      {"call_s", &call_s},           {"byte_reduced_s", &byte_reduced_s}, {"byte_copied_s", &byte_copied_s},
      {"byte_read_s", &byte_read_s}, {"byte_stored_s", &byte_stored_s},   {"byte_coded_s", &byte_coded_s},
      {"switch_s", &switch_s},       {"half_factor", &half_factor},       {"far_factor", &far_factor},
      {"cache_bytes", &cache_bytes}};
  if (const auto found = own.find(name); found != own.end()) return found->second;
  const auto dot = name.rfind('.');
  if (dot == std::string::npos || dot == 0) return nullptr;
  const std::string what = name.substr(dot + 1);
  if (what != "latency_s" && what != "message_s" && what != "byte_s") return nullptr;
  LinkPrice& link = links[name.substr(0, dot)];
  return what == "latency_s" ? &link.latency_s : what == "message_s" ? &link.message_s : &link.byte_s;
}

std::vector<std::string> Prices::names() const {
  std::vector<std::string> names = {"call_s",        "byte_reduced_s", "byte_copied_s", "byte_read_s",
                                    "byte_stored_s", "byte_coded_s",   "switch_s",      "half_factor",
                                    "far_factor",    "cache_bytes"};
  for (const auto& [kind, link] : links)
    for (const char* what : {".latency_s", ".message_s", ".byte_s"}) names.push_back(kind + what);
  return names;
}

const LinkPrice& Prices::link(const std::string& kind) const {
  if (const auto found = links.find(kind); found != links.end()) return found->second;
  const bool network = is_network(kind);
  if (const auto found = links.find(network ? "mpi/network" : "mpi"); found != links.end())
    return found->second;
  return links.begin()->second;
}

const Prices& built_in_prices() {
  static const Prices prices = {.call_s = 2.6e-6,
                                .byte_reduced_s = 1.1e-11,
                                .byte_copied_s = 1.6e-11,
                                .byte_read_s = 1.35e-11,
                                .byte_stored_s = 1.35e-11,
                                .byte_coded_s = 1.0e-10,
                                .switch_s = 9.6e-6,
                                .half_factor = 1.4,
                                .far_factor = 5.0,
                                .cache_bytes = 2.4e7,
                                .links = {{"inproc", {1.4e-7, 1.1e-7, 2.6e-11}},
                                          {"inproc_mapped", {1.4e-7, 1.1e-7, 2.6e-11}},
                                          {"mpi", {2e-8, 3.7e-7, 8.4e-11}},
                                          {"mpi/network", {25e-6, 2e-6, 8.4e-9}},
                                          {"shm", {1.4e-7, 1.1e-7, 2.6e-11}}}};
  return prices;
}

}  // namespace pycomm
