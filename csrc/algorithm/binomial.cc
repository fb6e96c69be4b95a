// Trees of ceil(log2(N)) rounds. Counted from the root, rank v has its parent at v without its lowest binary
// digit, and a child at v + d for every digit d below that, so that the ranks v ... v + d - 1 below the
// parent v - d are one subtree. Best for short vectors.
//
// Down the tree the largest subtree is served first, and up the tree it is awaited last: in a binomial tree
// it has the most rounds to go. Gathered and scattered chunks wait in a slot each at the ranks between
// (Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", 2005).
#include <algorithm>
#include <bit>

#include "algorithm/ranks.h"
#include "algorithm/volume.h"

namespace pycomm {
namespace {

// A rank in the tree; all numbers are counted from the root.
struct Place {
  explicit Place(const Spec& spec) : self(from_root(spec, spec.rank)), size(spec.size) {
    const int digit = is_root() ? static_cast<int>(std::bit_ceil(static_cast<unsigned>(size))) : self & -self;
    parent = self - digit;
    end = std::min(self + digit, size);
    for (int d = 1; d < digit; d *= 2)
      if (self + d < size) children.push_back(self + d);
  }

  bool is_root() const { return self == 0; }
  // The subtree below a child ends where the next child's begins.
  int end_of(int child) const { return std::min(2 * child - self, size); }

  int self, size;
  int parent;                 // not of the root
  int end;                    // this subtree is self ... end - 1
  std::vector<int> children;  // the smallest subtree first
};

Plan broadcast(const Spec& spec) {
  const Place place(spec);
  Plan plan;
  if (!place.is_root()) plan.add_stage().steps = {recv(rank_of(spec, place.parent), 0, kOutput)};
  Stage& serve = plan.add_stage();
  for (auto child = place.children.rbegin(); child != place.children.rend(); ++child) {
    const Step pass = send(rank_of(spec, *child), 0, kOutput);
    serve.steps.push_back(place.is_root() ? published(pass) : pass);
  }
  return plan;
}

// Neighbours are added first: ((v + v+1) + (v+2 + v+3)) + ...
Plan reduce(const Spec& spec) {
  if (spec.size == 1) return alone(spec);
  const Place place(spec);
  const Buffer sum = place.is_root() ? kOutput : scratch(0);
  Buffer so_far = kInput;
  Plan plan;
  Stage& add = plan.add_stage();
  for (int child : place.children) {
    add.steps.push_back(recv_reduce(rank_of(spec, child), 0, so_far, sum));
    so_far = sum;
  }
  if (place.is_root()) {
    add.steps.back() = as_final(add.steps.back());
  } else {
    plan.add_stage().steps = {send(rank_of(spec, place.parent), 0, so_far)};
  }
  return plan;
}

// Chunks of the subtree below rank `self` wait in slots in the order of their owners.
Buffer slot_of(const Place& place, int owner) {
  return scratch(owner - place.self - 1);
}

Plan gather(const Spec& spec) {
  const Place place(spec);
  Plan plan{.chunks = spec.size};
  Stage& collect = plan.add_stage();
  if (place.is_root()) collect.steps = {copy(spec.rank, kInput, kOutput)};
  for (int child : place.children)
    for (int owner = child; owner < place.end_of(child); ++owner)
      collect.steps.push_back(recv(rank_of(spec, child), rank_of(spec, owner),
                                   place.is_root() ? kOutput : slot_of(place, owner)));
  if (place.is_root()) return plan;
  Stage& pass = plan.add_stage();
  for (int owner = place.self; owner < place.end; ++owner)
    pass.steps.push_back(send(rank_of(spec, place.parent), rank_of(spec, owner),
                              owner == place.self ? kInput : slot_of(place, owner)));
  return plan;
}

Plan scatter(const Spec& spec) {
  const Place place(spec);
  Plan plan{.chunks = spec.size};
  Stage& take = plan.add_stage();
  if (place.is_root()) take.steps = {copy(spec.rank, kInput, kOutput)};
  for (int owner = place.self; owner < place.end && !place.is_root(); ++owner)
    take.steps.push_back(recv(rank_of(spec, place.parent), rank_of(spec, owner),
                              owner == place.self ? kOutput : slot_of(place, owner)));
  Stage& serve = plan.add_stage();
  for (auto child = place.children.rbegin(); child != place.children.rend(); ++child)
    for (int owner = *child; owner < place.end_of(*child); ++owner)
      serve.steps.push_back(send(rank_of(spec, *child), rank_of(spec, owner),
                                 place.is_root() ? kInput : slot_of(place, owner)));
  return plan;
}

double every_round(int size) {
  return std::bit_width(static_cast<unsigned>(size) - 1);
}
// The root's last child has the largest subtree, or the one before it where that is cut short.
double largest_subtree(int size) {
  const int last_child = static_cast<int>(std::bit_ceil(static_cast<unsigned>(size))) / 2;
  return size > 1 ? double(std::max(last_child / 2, size - last_child)) / size : 0;
}
double all_but_own(int size) {
  return double(size - 1) / size;
}

const Register<Algorithm> kBroadcast({.name = "broadcast:binomial",
                                      .summary = "down a binomial tree; short vectors",
                                      .plan = broadcast,
                                      .volume = every_round});
const Register<Algorithm> kReduce({.name = "reduce:binomial",
                                   .summary = "partial sums up a binomial tree; short vectors",
                                   .plan = reduce,
                                   .volume = one_vector});
const Register<Algorithm> kGather({.name = "gather:binomial",
                                   .summary = "subtrees' chunks up a binomial tree; short vectors",
                                   .plan = gather,
                                   .volume = largest_subtree});
const Register<Algorithm> kScatter({.name = "scatter:binomial",
                                    .summary = "subtrees' chunks down a binomial tree; short vectors",
                                    .plan = scatter,
                                    .volume = all_but_own});

}  // namespace
}  // namespace pycomm
