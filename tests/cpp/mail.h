// Messages between ranks that are threads, in segments of 1 kB.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/mailbox.h"
#include "engines.h"

namespace pycomm {

using Bytes = std::vector<std::byte>;

inline const Options kInline{.segment_bytes = 1024};
inline const Options kWays[] = {{"inproc", false, 1024},
                                {"inproc", true, 1024},
                                {"inproc_mapped", false, 1024},
                                {"inproc_mapped", true, 1024}};

inline Bytes pattern(std::size_t size, int seed) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + seed);
  return bytes;
}

// A message of two pieces; the memory is kept by the work.
inline std::shared_ptr<Work> send(Mailbox& box, int peer, const std::string& head, const Bytes& content,
                                  double timeout_s = 0) {
  const auto memory = std::make_shared<Bytes>(content);
  Mailbox::Post post;
  post.peer = peer;
  post.head = head;
  const std::span<const std::byte> all(*memory);
  post.pieces = {all.first(content.size() / 3), all.subspan(content.size() / 3)};
  post.keepalive = memory;
  post.timeout_s = timeout_s;
  return box.submit(std::move(post));
}

inline Delivery receive(Mailbox& box, int source = Mailbox::kAnyone) {
  while (true) {
    if (auto delivery = box.take(source)) return std::move(*delivery);
    box.wait(source, 1.0);
  }
}

inline std::string next_head(Mailbox& box, int source = Mailbox::kAnyone) {
  return receive(box, source).message->head();
}

inline Bytes joined(const Message& message) {
  Bytes all;
  for (const auto& piece : message.pieces()) all.insert(all.end(), piece.begin(), piece.end());
  return all;
}

inline void barrier(Communicator& communicator) {
  const auto work = communicator.submit({});
  while (!communicator.wait(*work, 1.0)) {
  }
}

}  // namespace pycomm
