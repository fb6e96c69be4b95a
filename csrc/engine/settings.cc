#include "engine/settings.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <sstream>

#include "core/error.h"

namespace pycomm {
namespace {

double number(const std::string& value, const std::string& name, double least, double most, bool whole) {
  char* end = nullptr;
  const double parsed = std::strtod(value.c_str(), &end);
  const bool good = end != value.c_str() && *end == '\0' && parsed >= least && parsed <= most &&
                    (!whole || std::floor(parsed) == parsed);
  PYCOMM_CHECK(good, name, " is '", value, "'; expected a ", whole ? "whole " : "", "number from ", least,
               " to ", most);
  return parsed;
}

std::vector<std::string> split_list(const std::string& value) {
  std::vector<std::string> out;
  std::istringstream in(value);
  for (std::string item; std::getline(in, item, ',');)
    if (!item.empty()) out.push_back(item);
  return out;
}

std::vector<int> node_list(const std::string& value, const std::string& name) {
  std::vector<int> nodes;
  for (const std::string& item : split_list(value))
    nodes.push_back(static_cast<int>(number(item, name, 0, 1 << 20, true)));
  return nodes;
}

template <class T>
void write_list(std::ostringstream& out, const std::vector<T>& items) {
  for (std::size_t i = 0; i < items.size(); ++i) out << (i ? "," : "") << items[i];
}

// One row per setting: the only place that knows their names, ranges and formats.
void set(Settings& settings, const std::string& name, const std::string& value, const std::string& shown) {
  if (name == "timeout_s") settings.timeout_s = number(value, shown, 1e-3, 1e9, false);
  if (name == "segment_bytes")
    settings.segment_bytes = static_cast<std::int64_t>(number(value, shown, 0, 1 << 30, true));
  if (name == "window") settings.window = static_cast<int>(number(value, shown, 0, 1024, true));
  if (name == "in_flight") settings.in_flight = static_cast<int>(number(value, shown, 1, 1024, true));
  if (name == "heap_mb") settings.heap_mb = static_cast<std::int64_t>(number(value, shown, 0, 1 << 25, true));
  if (name == "trace_events")
    settings.trace_events = static_cast<std::int64_t>(number(value, shown, 0, 1e12, true));
  if (name == "transports") settings.transports = split_list(value);
  if (name == "nodes") settings.nodes = node_list(value, shown);
}

}  // namespace

Settings Settings::from_environment() {
  static const std::map<std::string, std::string> kVariables = {
      {"timeout_s", "PYCOMM_TIMEOUT_S"}, {"segment_bytes", "PYCOMM_SEGMENT_BYTES"},
      {"window", "PYCOMM_WINDOW"},       {"in_flight", "PYCOMM_IN_FLIGHT"},
      {"heap_mb", "PYCOMM_HEAP_MB"},     {"transports", "PYCOMM_TRANSPORTS"},
      {"nodes", "PYCOMM_NODES"}};
  Settings settings;
  for (const auto& [name, variable] : kVariables)
    if (const char* value = std::getenv(variable.c_str()); value && *value)
      set(settings, name, value, variable);
  return settings;
}

std::string Settings::to_text() const {
  std::ostringstream out;
  out.precision(17);
  out << "timeout_s=" << timeout_s << " segment_bytes=" << segment_bytes << " window=" << window
      << " in_flight=" << in_flight << " heap_mb=" << heap_mb << " trace_events=" << trace_events
      << " transports=";
  write_list(out, transports);
  out << " nodes=";
  write_list(out, nodes);
  return out.str();
}

Settings Settings::from_text(const std::string& text) {
  Settings settings;
  std::istringstream in(text);
  for (std::string item; in >> item;) {
    const auto equals = item.find('=');
    PYCOMM_CHECK(equals != std::string::npos, "settings '", text, "': expected name=value");
    const std::string name = item.substr(0, equals);
    if (equals + 1 < item.size()) set(settings, name, item.substr(equals + 1), name);
  }
  return settings;
}

}  // namespace pycomm
