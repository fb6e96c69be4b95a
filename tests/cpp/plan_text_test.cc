// Plans written as text and read again; texts that no plan writes are refused with the line and the reason.
#include "check.h"
#include "fuzz.h"
#include "plan/text.h"
#include "plan/verify.h"
#include "plans.h"

using namespace pycomm;

namespace {

// The smallest text that holds every kind of step, buffer and mark.
const std::string kEveryStep =
    "chunks 12\n"
    "stage 0\n"
    "  send chunk 3 of input to 4\n"
    "  recv chunk 0 from 2 into scratch[1]\n"
    "  recv_reduce chunk 1 of input and from 2 into output, final\n"
    "  copy chunk 11 of input into output\n"
    "stage 1\n"
    "stage 2\n"
    "  reduce chunk 0 of scratch[0], input, scratch[12] into output, final\n"
    "  meet 1, 2\n"
    "  reduce_from chunk 1 of input of 0, 1, 10 into output, final\n"
    "  store_to chunk 1 of output into output of 0, 2\n"
    "  store_to chunk 1 of output into output of 0, 2, final, published\n"
    "  reduce chunk 0 of scratch[0], input into output, pairwise, final\n"
    "  reduce_from chunk 1 of input of 0, 1 into output, pairwise\n"
    "  send chunk 3 of output to 4, published\n";

void refused(const std::string& source, const std::string& why) {
  CHECK_THROWS(plan_from_text(source), InvalidArgument, "plan text, " + why);
}

void step_refused(const std::string& step, const std::string& why) {
  refused("chunks 2\nstage 0\n  " + step + "\n", "line 3: " + why);
}

// Every plan that a rank of a few ranks can have.
template <class Visit>
void for_every_plan(Visit visit) {
  for (const Algorithm* algorithm : Registry<Algorithm>::instance().all())
    for (int size : {1, 2, 3, 5, 8, 13})
      for (int rank = 0; rank < size && (!algorithm->supports || algorithm->supports(size)); ++rank)
        for (Order order : {Order::any, Order::tree})
          if (exists(order, size) && keeps(*algorithm, order, false))
            visit(algorithm->plan({collective_of(*algorithm), rank, size, size / 2, order}));
}

// Texts may be refused, but never with anything else; what is accepted is the text of its plan. Returns
// whether it was.
bool check_hostile(const std::string& source) {
  try {
    CHECK(to_text(plan_from_text(source)) == source);
    return true;
  } catch (const InvalidArgument& error) {
    const std::string_view what = error.what();
    CHECK(what.starts_with("plan text, line "));
    CHECK(what.size() < 200);
    return false;
  }
}

}  // namespace

TEST(every_registered_plan_is_read_from_its_text) {
  for_every_plan([](const Plan& plan) { CHECK(plan_from_text(to_text(plan)) == plan); });
}

TEST(every_kind_of_step_is_read_from_its_text) {
  const Plan plan = plan_from_text(kEveryStep);
  CHECK_EQ(to_text(plan), kEveryStep);
  CHECK_EQ(plan.stages.size(), 3u);
  CHECK(plan.stages[0].steps[0] == send(4, 3, kInput));
  CHECK(plan.stages[2].steps[0] == as_final(reduce(0, kOutput, {scratch(0), kInput, scratch(12)})));
  CHECK(plan.stages[2].steps[2] == as_final(reduce_from({0, 1, 10}, 1, kInput, kOutput)));
  CHECK(plan.stages[2].steps[4] == published(as_final(store_to({0, 2}, 1, kOutput, kOutput))));
}

TEST(a_plan_text_without_its_frame_is_refused) {
  refused("", "line 1: expected a line with a newline at its end, got the end of the line");
  refused("\n", "line 1: expected 'chunks ', got the end of the line");
  refused("stage 0\n", "line 1: expected 'chunks ', got 'stage 0'");
  refused("chunks 2", "line 1: expected a line with a newline at its end, got 'chunks 2'");
  refused("chunks 2 \n", "line 1: expected the end of the line, got ' '");
  refused("chunks 2\n\n", "line 2: expected 'stage 0', got the end of the line");
  refused("chunks 2\nstage 1\n", "line 2: expected 'stage 0', got 'stage 1'");
  refused("chunks 2\n  copy chunk 0 of input into output\n", "line 2: expected 'stage 0', got '  copy chunk");
  refused("chunks 2\nstage 0\nstage 2\n", "line 3: expected 'stage 1' or a step, got 'stage 2'");
  refused("chunks 2\nstage 0\nstage 10\n", "line 3: expected 'stage 1' or a step, got 'stage 10'");
  refused("chunks 2\r\n", "line 1: expected the end of the line, got '?'");
}

TEST(a_step_text_that_no_step_writes_is_refused) {
  step_refused("sendall chunk 0 of input to 1",
               "expected a step: send, recv, recv_reduce, copy, reduce, meet, reduce_from or store_to, got "
               "'sendall chunk 0 of input to 1'");
  step_refused("send", "expected ' chunk ', got the end of the line");
  step_refused("send chunk 0 of inputs to 1", "expected ' to ', got 's to 1'");
  step_refused("send chunk 0 of input to 1, 2", "expected the end of the line, got ', 2'");
  step_refused("send chunk 0 of input to 1, published, final", "expected the end of the line, got ', final'");
  step_refused("send chunk 0 of slot 1 to 1", "expected input, output or scratch[...], got 'slot 1 to 1'");
  step_refused("copy chunk 0 of scratch[1 into output", "expected ']', got ' into output'");
  step_refused("reduce chunk 0 of input, 3 into output",
               "expected input, output or scratch[...], got '3 into");
  step_refused("meet ", "expected the number of a rank, below 65536, got the end of the line");
  step_refused("meet 1, x", "expected the end of the line, got ', x'");
}

TEST(numbers_that_are_absurd_or_not_plain_are_refused) {
  step_refused("send chunk -1 of input to 1", "expected the number of a chunk, below 1048576, got '-1 of");
  step_refused("send chunk +1 of input to 1", "expected the number of a chunk, below 1048576, got '+1 of");
  step_refused("send chunk 01 of input to 1", "expected the number of a chunk, below 1048576, got '01 of");
  step_refused("send chunk 1048576 of input to 1", "expected the number of a chunk, below 1048576");
  step_refused("send chunk 0 of input to 65536", "expected the number of a rank, below 65536, got '65536'");
  step_refused("send chunk 0 of input to 99999999999999999999", "expected the number of a rank, below 65536");
  step_refused("send chunk 0 of scratch[65536] to 1", "expected the number of a slot, below 65536");
  refused("chunks 1048577\n", "line 1: expected the number of a chunk, below 1048577, got '1048577'");
  CHECK_EQ(plan_from_text("chunks 1048576\n").chunks, 1 << 20);
  CHECK(plan_from_text("chunks 2\nstage 0\n  send chunk 1048575 of scratch[65535] to 65535\n")
            .stages[0]
            .steps[0] == send(65535, 1048575, scratch(65535)));
}

TEST(what_was_found_is_quoted_short_and_printable) {
  refused("chunks 2\nstage 0\n" + std::string(100000, 'x') + "\n",
          "line 3: expected 'stage 1' or a step, got '" + std::string(40, 'x') + "...'");
  refused(std::string("a\0\x1b[31m\xff\n", 9), "line 1: expected 'chunks ', got 'a??[31m?'");
}

TEST(random_bytes_are_refused_as_plan_texts) {
  fuzz::for_a_while(1, 2000, [](fuzz::Random& random) { CHECK(!check_hostile(fuzz::bytes(random, 200))); });
}

TEST(spoiled_plan_texts_are_refused_or_read_to_the_letter) {
  std::vector<std::string> texts = {kEveryStep};
  for_every_plan([&](const Plan& plan) {
    if (std::string source = to_text(plan); source.size() < 2000) texts.push_back(std::move(source));
  });
  int accepted = 0, refused = 0;
  fuzz::for_a_while(2, 20000, [&](fuzz::Random& random) {
    const std::string source = fuzz::spoiled(random, texts[fuzz::below(random, texts.size())], texts);
    ++(check_hostile(source) ? accepted : refused);
  });
  CHECK(accepted > 500);
  CHECK(refused > 500);
}

TEST(verify_judges_whatever_can_be_read) {
  const auto algorithms = Registry<Algorithm>::instance().all();
  int right = 0, wrong = 0;
  fuzz::for_a_while(3, 5000, [&](fuzz::Random& random) {
    const Algorithm& algorithm = *algorithms[fuzz::below(random, algorithms.size())];
    const Collective collective = collective_of(algorithm);
    const int size = 2 + static_cast<int>(fuzz::below(random, 4));
    Plans plans = plans_of(collective, short_name(algorithm), size);
    Plan& victim = plans[fuzz::below(random, plans.size())];
    try {
      victim = plan_from_text(fuzz::spoiled(random, to_text(victim), {to_text(plans[0]), kEveryStep}));
    } catch (const InvalidArgument&) {
      return;
    }
    const std::string flaw = verify(collective, 0, plans, {});
    CHECK(flaw.empty() || flaw.find("rank") != std::string::npos);
    ++(flaw.empty() ? right : wrong);
  });
  CHECK(right > 10);
  CHECK(wrong > 100);
}
