#include "engine/own_algorithm.h"

#include "engine/wire.h"
#include "plan/text.h"
#include "plan/verify.h"

namespace pycomm {
namespace {

std::string flaw_of(Collective collective, int root, const std::vector<Plan>& plans, VerifyOptions options) {
  for (const bool in_place : {false, true}) {
    options.in_place = in_place;
    const auto flaw = verify(collective, root, plans, options);
    if (!flaw.empty()) return text(in_place ? "in place: " : "", flaw);
  }
  return "";
}

}  // namespace

OwnAlgorithm::OwnAlgorithm(Collective collective, int root, const std::string& name,
                           const std::vector<Plan>& plans, int rank, const std::vector<int>& node_of)
    : root_(root), size_(static_cast<int>(plans.size())) {
  PYCOMM_CHECK(collective != Collective::send && collective != Collective::recv,
               "send and recv take no algorithm");
  PYCOMM_CHECK(rank >= 0 && rank < size_, "rank ", rank, " of ", size_, " plans");
  const std::string flaw = flaw_of(collective, root, plans, {.lossy_codecs = false});
  PYCOMM_CHECK(flaw.empty(), "algorithm '", name, "' is wrong for ", name_of(collective), " on ", size_,
               " ranks: ", flaw);
  for (const bool in_place : {false, true})
    compiled_[in_place] =
        std::make_shared<const CompiledPlan>([&](int of_rank) { return plans[of_rank]; }, rank, in_place);
  std::string everything;
  bool mapped = false, meets = false, messages = false;
  for (int from = 0; from < size_; ++from) {
    everything += to_text(plans[from]);
    const CompiledPlan compiled(plans[from], false);
    for (const int peer : compiled.met) mapped |= node_of.empty() || node_of[peer] != node_of[from];
    meets |= !compiled.met.empty();
    messages |= compiled.messages;
  }
  std::vector<Order> orders;
  for (const Order order : {Order::rank, Order::tree}) {
    if (!reduces(collective) || !exists(order, size_)) continue;
    std::string& order_flaw = order_flaws_[index_of(order)];
    order_flaw = flaw_of(collective, root, plans, {.lossy_codecs = false, .order = order});
    if (order_flaw.empty()) orders.push_back(order);
  }
  digest_ = digest_of(everything.data(), everything.size());
  algorithm_ = {
      .name = text(name_of(collective), ":", name),
      .summary = "the caller's own",
      .lossy_codecs = (messages || !meets) && flaw_of(collective, root, plans, {}).empty(),
      .orders = std::move(orders),
      // What is read from peers' memory has not passed a codec, as an order asks of every contribution.
      .rounds_once =
          !meets && flaw_of(collective, root, plans, {.lossy_codecs = false, .rounds_once = true}).empty(),
      .uneven = collective != Collective::all_to_all,  // it may pass on blocks of unknown size
      .mapped = mapped};
}

}  // namespace pycomm
