// Proves plans right for one world size, before a byte moves, by running all ranks symbolically.
//
// The model is the weakest executor that keeps plan.h, so what passes here passes with any that buffers more:
//   - a step runs when the earlier steps that it conflicts with are complete (schedule.h has the rule);
//   - a send completes together with its receive, and only when both have their turn in the order of messages
//     from the one rank to the other; a recv_reduce has no buffer to wait in;
//   - a meet completes for all its ranks at once; between two meets nobody touches what another rank reaches.
//
// A value is what a place holds: the set of ranks whose contributions are in it, and a hash of the expression
// that made it. Contributions that overlap are an error where they are added. With lossy codecs every message
// turns x into Q(x), and Q(Q(x)) is Q(x), so a finished value is kept by its owner as x and by the receivers
// as Q(x) unless `publish` turns the owner's into Q(x) too. Hence the rule: the ranks end with equal bits
// exactly when their expressions, Q included, are equal; a publish is needed where it makes them equal, and
// wrong on received values.
//
// Found: reads of undefined or wrong chunks; steps of one stage that conflict; sends and receives that do not
// match; deadlocks; races over addressable memory; results incomplete, or with a contribution twice, or with
// different bits on different ranks; `final` or `publish` missing or wrong; more bytes than the theory.
#pragma once

#include <string>
#include <vector>

#include "plan/plan.h"

namespace pycomm {

struct VerifyOptions {
  bool in_place = false;  // input and output are the same memory (always for broadcast, never for all_to_all)
  bool lossy_codecs = true;       // the ranks must end with equal bits under a lossy codec too
  double volume = -1.0;           // expected volume as in Algorithm::volume; negative: not checked
  double volume_of_node = -1.0;   // and as in Algorithm::volume_of_node
  std::vector<int> node_of = {};  // as in Spec; memory is reached within nodes only. Empty: anywhere
};

// `plans[r]` is rank r's plan for `collective`. Returns the empty string when the plans are right, else what
// is wrong and where (rank, stage, step). A send and its recv are verified together: for send, `root`
// receives from the only other rank that has steps; for recv, `root` sends to it.
std::string verify(Collective collective, int root, const std::vector<Plan>& plans,
                   const VerifyOptions& options);

// Builds every rank's plan and verifies them in place and out of place, where both can be, against the
// algorithm's own volume and codec flag, for up to 8 roots (pairs, for send and recv) spread over the ranks.
// `node_of` is as in Spec. A size that the algorithm does not support throws InvalidArgument.
std::string verify(const Algorithm& algorithm, int size, const std::vector<int>& node_of = {});

}  // namespace pycomm
