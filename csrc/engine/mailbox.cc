#include "engine/mailbox.h"

#include <algorithm>

#include "core/error.h"

namespace pycomm {
namespace {

BoxId checked_id(const Communicator& communicator, int tag) {
  PYCOMM_CHECK(tag >= 0 && tag <= Mailbox::kHighestTag, "tag is ", tag,
               "; expected a whole number from 0 to ", Mailbox::kHighestTag);
  communicator.engine().check_usable();
  return {communicator.group().context, static_cast<std::uint16_t>(tag)};
}

}  // namespace

Mailbox::Mailbox(std::shared_ptr<Communicator> communicator, int tag)
    : communicator_(std::move(communicator)),
      id_(checked_id(*communicator_, tag)),
      service_(communicator_->engine().driver().service<MailService>()) {
  service_.listen();
  poke();
}

std::shared_ptr<Work> Mailbox::submit(Post post) {
  const Engine& engine = communicator_->engine();
  engine.check_usable();
  if (const auto failure = communicator_->failure()) raise(failure->kind, failure->what);
  PYCOMM_CHECK(post.peer >= 0 && post.peer < communicator_->size(), "peer is ", post.peer,
               "; expected a rank from 0 to ", communicator_->size() - 1);
  Outgoing message;
  message.work = std::make_shared<Work>(std::move(post.keepalive));
  message.group = communicator_->shared_group();
  message.box = id_;
  message.rank = post.peer;
  message.peer = message.group->world_ranks[post.peer];
  message.head = pack_head(post.head, post.pieces);
  for (const auto& piece : post.pieces) message.payload_bytes += piece.size();
  message.pieces = std::move(post.pieces);
  message.timeout_s = post.timeout_s > 0 ? post.timeout_s : engine.settings().timeout_s;
  auto work = message.work;
  work->submit(0);
  service_.submit(std::move(message));
  engine.driver().nudge();
  return work;
}

int Mailbox::world_rank(int source) const {
  PYCOMM_CHECK(source == kAnyone || (source >= 0 && source < communicator_->size()), "source is ", source,
               "; expected a rank from 0 to ", communicator_->size() - 1);
  return source == kAnyone ? kAnyone : communicator_->group().world_ranks[source];
}

std::optional<Delivery> Mailbox::take(int source) {
  const int from = world_rank(source);
  communicator_->engine().check_usable();
  if (const auto failure = communicator_->failure()) raise(failure->kind, failure->what);
  auto delivery = service_.boxes().take(id_, from);
  if (delivery) {
    if (delivery->credit_due) {
      service_.remind();
      poke();
    }
    const auto& ranks = communicator_->group().world_ranks;
    delivery->source =
        static_cast<int>(std::find(ranks.begin(), ranks.end(), delivery->source) - ranks.begin());
    return delivery;
  }
  if (const auto why = service_.boxes().hopeless(id_, from, communicator_->group()); !why.empty())
    throw Aborted(text("nothing more can come to mailbox ", id_.tag, ": ", why));
  return std::nullopt;
}

void Mailbox::wait(int source, double seconds) {
  const int from = world_rank(source);
  const MailBoxes& boxes = service_.boxes();
  const auto span = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  communicator_->engine().driver().wait(
      [&] {
        return boxes.has(id_, from) || communicator_->failure() ||
               !boxes.hopeless(id_, from, communicator_->group()).empty();
      },
      span);
}

void Mailbox::poke() {
  communicator_->engine().check_usable();
  communicator_->engine().driver().poke();
}

}  // namespace pycomm
