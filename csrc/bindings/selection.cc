// How algorithms are chosen: explained, and what pycomm.tune fits.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "bindings/bindings.h"
#include "bindings/calls.h"
#include "plan/select.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

using Facts = py::typing::Dict<py::str, py::object>;

Choice choice_for(const std::string& collective, std::int64_t bytes, const std::string& dtype,
                  const std::string& codec, bool uneven, const std::string& order) {
  PYCOMM_CHECK(bytes >= 0, "nbytes is ", bytes, "; expected 0 or more");
  const DType type = dtype_from_name(dtype);
  const Codec& wire = codec_named(codec.empty() ? "none" : codec);
  return {.collective = collective_from_name(collective),
          .bytes = bytes,
          .half = is_half(type),
          .lossy = !wire.lossless,
          .wire_ratio = wire_ratio(wire, type),
          .uneven = uneven,
          .order = order_from_name(order)};
}

Facts described(const Explanation& explanation) {
  py::list candidates;
  for (const Candidate& candidate : explanation.candidates)
    candidates.append(py::make_tuple(short_name(*candidate.algorithm), std::string(candidate.lacks),
                                     candidate.model_s, candidate.table_s));
  Facts out;
  out["algorithm"] = short_name(*explanation.algorithm);
  out["by"] = std::string(kChosenByNames[static_cast<int>(explanation.by)]);
  out["seconds"] = explanation.seconds;
  out["candidates"] = candidates;
  return out;
}

Facts group(const Communicator& communicator) {
  const Links& links = communicator.selector().links();
  py::dict pairs;
  if (links.size() > 1)
    for (const std::string& kind : links.kinds()) pairs[py::str(kind)] = links.pairs_of(kind);
  Facts out;
  out["links"] = links.name();
  out["pairs"] = pairs;
  out["ranks_per_machine"] = links.ranks_per_machine();
  out["crowd"] = communicator.engine().crowd();
  return out;
}

// Prices one (collective, algorithm) of a communicator's group again and again, under prices that are tried.
class Pricer {
 public:
  Pricer(const Communicator& communicator, const std::string& collective, const std::string& algorithm)
      : costing_(algorithm_named(collective_from_name(collective), algorithm),
                 communicator.selector().links(), communicator.selector().node_of()),
        choice_{.collective = collective_from_name(collective), .size = communicator.size()},
        load_(communicator.selector().load_of(choice_)) {}

  double seconds(std::int64_t bytes, bool half, const std::map<std::string, double>& prices) const {
    Prices tried = built_in_prices();
    for (const auto& [name, value] : prices) {
      double* const price = tried.find(name);
      PYCOMM_CHECK(price, "there is no price '", name, "'");
      *price = value;
    }
    Load load = load_;
    load.bytes = static_cast<double>(bytes);
    load.half = half;
    return costing_.seconds(load, tried);
  }

 private:
  Costing costing_;
  Choice choice_;
  Load load_;
};

std::map<std::string, double> prices_of(Prices prices) {
  std::map<std::string, double> out;
  for (const std::string& name : prices.names()) out[name] = *prices.find(name);
  return out;
}

}  // namespace

void bind_selection(py::module_& m) {
  m.def(
      "explain",
      [](Communicator& communicator, const std::string& collective, std::int64_t bytes,
         const std::string& dtype, const std::string& codec, bool uneven, const std::string& algorithm,
         const std::string& order) {
        const Choice choice = choice_for(collective, bytes, dtype, codec, uneven, order);
        return described(communicator.explain(choice, algorithm));
      },
      py::arg("communicator"), py::arg("collective"), py::arg("nbytes"), py::arg("dtype"), py::arg("codec"),
      py::arg("uneven"), py::arg("algorithm"), py::arg("order"),
      "How the algorithm of such a call is chosen. Local.");
  m.def("group_facts", &group, py::arg("communicator"), "What the choice knows of a communicator's ranks.");
  m.def(
      "prices", [](const Communicator& communicator) { return prices_of(communicator.selector().prices()); },
      py::arg("communicator"), "By which the plans of a communicator are priced, in seconds.");
  m.def(
      "check_table", [](const std::string& lines) { Table table(lines); }, py::arg("lines"),
      "Raises InvalidArgument for the text of a table that is none.");
  py::class_<Pricer>(m, "Pricer")
      .def(py::init<const Communicator&, const std::string&, const std::string&>(), py::arg("communicator"),
           py::arg("collective"), py::arg("algorithm"))
      .def("seconds", &Pricer::seconds, py::arg("nbytes"), py::arg("half"), py::arg("prices"),
           "The algorithm's price; what `prices` does not name has its built-in value.");
}

}  // namespace pycomm::bindings
