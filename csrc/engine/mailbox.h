// What a caller holds of a box: messages of any size to and from any rank of a communicator, apart from other
// boxes and from collectives. Local: nobody else need have made it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/communicator.h"
#include "engine/mail_service.h"

namespace pycomm {

// Threads: any. Ranks are those of the communicator.
class Mailbox {
 public:
  static constexpr int kAnyone = MailBoxes::kAnyone;
  static constexpr int kHighestTag = 65535;

  Mailbox(std::shared_ptr<Communicator> communicator, int tag);

  struct Post {
    int peer = 0;
    std::string head;
    std::vector<std::span<const std::byte>> pieces;
    std::shared_ptr<void> keepalive;  // of the pieces
    double timeout_s = 0;             // 0: as the settings say
  };
  // Never blocks. The work is done when the pieces may be rewritten.
  std::shared_ptr<Work> submit(Post post);

  // The earliest message from a rank or from anyone, with its rank as source. Never waits. Throws the first
  // cause where the communicator is broken, and Aborted where those who could send have left.
  std::optional<Delivery> take(int source);
  // Drives until take() would give something or throw, or for so many seconds.
  void wait(int source, double seconds);
  // Makes one pass, if nobody drives.
  void poke();

  int tag() const { return id_.tag; }
  Communicator& communicator() const { return *communicator_; }

 private:
  int world_rank(int source) const;

  const std::shared_ptr<Communicator> communicator_;
  const BoxId id_;
  MailService& service_;
};

}  // namespace pycomm
