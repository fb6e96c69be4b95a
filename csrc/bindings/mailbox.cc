#include "engine/mailbox.h"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/waiting.h"

namespace pycomm::bindings {
namespace py = pybind11;
namespace {

constexpr double kSignalsEvery_s = 0.1;

// A message in Python's hands; its pieces lie in one writable buffer.
struct Mail {
  int source;
  std::unique_ptr<Message> message;
};

std::shared_ptr<Work> submit(Mailbox& mailbox, int peer, const py::bytes& head,
                             const py::typing::List<py::object>& pieces, double timeout_s) {
  drain_released();
  Mailbox::Post post;
  post.peer = peer;
  post.head = head;
  post.timeout_s = timeout_s;
  const auto held = std::make_shared<Held>();
  for (const py::handle piece : pieces) post.pieces.emplace_back(held->take(piece, false, "a piece").span());
  post.keepalive = held;
  return mailbox.submit(std::move(post));
}

std::optional<Mail> take(Mailbox& mailbox, int source) {
  std::optional<Delivery> delivery;
  {
    const py::gil_scoped_release release;
    delivery = mailbox.take(source);
  }
  if (!delivery) return std::nullopt;
  return Mail{delivery->source, std::move(delivery->message)};
}

// None when the time is over first.
std::optional<Mail> recv(Mailbox& mailbox, int source, double timeout_s) {
  const auto start = Clock::now();
  while (true) {
    if (auto mail = take(mailbox, source)) return mail;
    const double left = timeout_s - std::chrono::duration<double>(Clock::now() - start).count();
    if (left <= 0) return std::nullopt;
    {
      const py::gil_scoped_release release;
      mailbox.wait(source, std::min(left, kSignalsEvery_s));
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

}  // namespace

void bind_mailbox(py::module_& m) {
  py::class_<Mail>(m, "Mail", py::buffer_protocol(), "A message that has come.")
      .def_buffer([](const Mail& mail) {
        const auto memory = mail.message->memory();
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(memory.data()),
                               static_cast<py::ssize_t>(memory.size()));
      })
      .def_readonly("source", &Mail::source)
      .def_property_readonly("head", [](const Mail& mail) { return py::bytes(mail.message->head()); })
      .def_property_readonly(
          "pieces",
          [](const Mail& mail) {
            std::vector<std::pair<std::size_t, std::size_t>> out;
            for (const auto& piece : mail.message->pieces())
              out.emplace_back(piece.data() - mail.message->memory().data(), piece.size());
            return out;
          },
          "(offset, bytes) of each in the buffer.");

  py::class_<Mailbox>(m, "Mailbox")
      .def(py::init<std::shared_ptr<Communicator>, int>(), py::arg("communicator"), py::arg("tag"),
           py::call_guard<py::gil_scoped_release>(), "Moves what can be moved. Does not block.")
      .def_property_readonly("tag", &Mailbox::tag)
      .def("submit", &submit, py::arg("peer"), py::arg("head"), py::arg("pieces"), py::arg("timeout_s"),
           "Starts a message. Does not block.")
      .def("take", &take, py::arg("source"), "The earliest message that is here. Does not block.")
      .def("recv", &recv, py::arg("source"), py::arg("timeout_s"),
           "Blocks until there is a message; None when the time is over first.")
      .def("poke", &Mailbox::poke, py::call_guard<py::gil_scoped_release>(),
           "Moves what can be moved. Does not block.");
}

}  // namespace pycomm::bindings
