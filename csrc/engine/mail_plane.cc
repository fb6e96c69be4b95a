#include "engine/mail_plane.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "core/error.h"

namespace pycomm {
namespace {

// Frames unread in all by one rank, or sent by one and unread, for as long as ranks are few enough.
constexpr std::uint32_t kUnreadFrames = 512;

std::uint32_t frame_window(int size) {
  return std::clamp(kUnreadFrames / static_cast<std::uint32_t>(std::max(1, size - 1)), 2u, 32u);
}

}  // namespace

MailPlane::MailPlane(const ServiceContext& context)
    : driver_(context.driver),
      router_(context.router),
      kind_(context.kind),
      window_(frame_window(context.router.size())),
      peers_(context.router.size()) {}

bool MailPlane::post(int peer, MailFrame frame, std::span<const std::byte> body) {
  Peer& to = peers_[peer];
  if (to.departed) return false;
  if (frame.type != MailFrame::Type::receipt) ++to.sent;
  frame.read = to.read_told = to.read;
  std::array<std::byte, Driver::kFrameBytes> bytes;
  std::memcpy(bytes.data(), &frame, sizeof(frame));
  std::copy(body.begin(), body.end(), bytes.begin() + sizeof(frame));
  try {
    driver_.post_frame(kind_, peer, std::span(bytes).first(sizeof(frame) + body.size()));
    return true;
  } catch (const Error& error) {
    break_all({error.kind(), error.what()});
    return false;
  }
}

MailFrame MailPlane::read(int peer, std::span<const std::byte> bytes) {
  MailFrame frame;
  if (bytes.size() < sizeof(frame) || peer < 0 || peer >= size())
    throw TransportError(text("rank ", peer, " sent a torn mailbox frame of ", bytes.size(), " bytes"));
  std::memcpy(&frame, bytes.data(), sizeof(frame));
  if (frame.type > MailFrame::Type::credit)
    throw TransportError(
        text("rank ", peer, " sent a mailbox frame of unknown type ", static_cast<int>(frame.type)));
  Peer& from = peers_[peer];
  if (from.sent - frame.read > unread(peer))
    throw TransportError(text("rank ", peer, " has read mailbox frame ", frame.read, "; it was sent ",
                              from.sent_read, " to ", from.sent));
  from.sent_read = frame.read;
  if (frame.type != MailFrame::Type::receipt) ++from.read;
  return frame;
}

void MailPlane::acknowledge(int peer) {
  const Peer& from = peers_[peer];
  if (from.read - from.read_told >= std::max(1u, window_ / 2)) post(peer, {}, {});
}

void MailPlane::break_context(std::uint32_t context, const Failure& failure) {
  driver_.break_context(context, failure);
  upset_ = true;
}

void MailPlane::break_all(const Failure& failure) {
  for (const std::uint32_t context : contexts_) break_context(context, failure);
}

std::vector<std::uint32_t> MailPlane::take_over() {
  std::vector<std::uint32_t> out;
  std::erase_if(contexts_, [&](std::uint32_t context) {
    if (!over(context)) return false;
    out.push_back(context);
    return true;
  });
  return out;
}

bool MailPlane::retire_pinned() {
  std::erase_if(pinned_, [](const PinnedMail& pinned) {
    try {
      return pinned.transport->poll(pinned.ticket) || pinned.transport->cancel(pinned.ticket);
    } catch (const Error&) {
      return false;  // a transport that cannot even tell keeps the memory
    }
  });
  return pinned_.empty();
}

}  // namespace pycomm
