#include "plan/text.h"

#include <charconv>

namespace pycomm {

std::string to_text(Buffer buffer) {
  if (buffer == kInput) return "input";
  if (buffer == kOutput) return "output";
  return text("scratch[", buffer.id - 2, "]");
}

namespace {

template <class Items, class Show>
std::string joined(const Items& items, Show show) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ", ") + show(item);
  return out;
}

std::string without_marks(const Step& step) {
  const std::string peers = joined(step.peers, [](int peer) { return std::to_string(peer); });
  const std::string sources = joined(step.sources, [](Buffer source) { return to_text(source); });
  const std::string head = text(name_of(step.op), " chunk ", step.chunk);
  const std::string src = to_text(step.src), dst = to_text(step.dst);
  switch (step.op) {
    case Op::send:
      return text(head, " of ", src, " to ", peers);
    case Op::recv:
      return text(head, " from ", peers, " into ", dst);
    case Op::recv_reduce:
      return text(head, " of ", src, " and from ", peers, " into ", dst);
    case Op::copy:
      return text(head, " of ", src, " into ", dst);
    case Op::reduce:
      return text(head, " of ", sources, " into ", dst);
    case Op::meet:
      return text("meet ", peers);
    case Op::reduce_from:
      return text(head, " of ", src, " of ", peers, " into ", dst);
    case Op::store_to:
      return text(head, " of ", src, " into ", dst, " of ", peers);
  }
  return head;
}

}  // namespace

std::string to_text(const Step& step) {
  return without_marks(step) + (step.pairwise ? ", pairwise" : "") + (step.final ? ", final" : "") +
         (step.publish ? ", published" : "");
}

std::string to_text(const Plan& plan) {
  std::string out = text("chunks ", plan.chunks, "\n");
  for (std::size_t stage = 0; stage < plan.stages.size(); ++stage) {
    out += text("stage ", stage, "\n");
    for (const Step& step : plan.stages[stage].steps) out += text("  ", to_text(step), "\n");
  }
  return out;
}

namespace {

// What was found, short enough for a message and without bytes that a terminal would not show.
std::string quoted(std::string_view found) {
  constexpr std::size_t kMost = 40;
  if (found.empty()) return "the end of the line";
  std::string out;
  for (const char c : found.substr(0, kMost)) out += c >= ' ' && c <= '~' ? c : '?';
  return text("'", out, found.size() > kMost ? "...'" : "'");
}

// Reads one line from left to right.
class Line {
 public:
  Line(int number, std::string_view line) : number_(number), rest_(line) {}

  bool is(std::string_view words) const { return rest_ == words; }

  bool accept(std::string_view words) {
    if (!rest_.starts_with(words)) return false;
    rest_.remove_prefix(words.size());
    return true;
  }

  void expect(std::string_view words) {
    if (!accept(words)) fail(text("'", words, "'"));
  }

  void end() const {
    if (!rest_.empty()) fail("the end of the line");
  }

  // Below `limit`, without leading zeros.
  int number(std::string_view what, int limit) {
    int value = 0;
    const auto [last, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    const auto digits = static_cast<std::size_t>(last - rest_.data());
    const bool plain = error == std::errc{} && rest_[0] != '-' && (rest_[0] != '0' || digits == 1);
    if (!plain || value >= limit) fail(text("the number of a ", what, ", below ", limit));
    rest_.remove_prefix(digits);
    return value;
  }

  Buffer buffer() {
    if (accept("input")) return kInput;
    if (accept("output")) return kOutput;
    if (!accept("scratch[")) fail("input, output or scratch[...]");
    const Buffer slot = scratch(number("slot", kMostSlots));
    expect("]");
    return slot;
  }

  int peer() { return number("rank", kMostRanks); }

  std::vector<int> peers() {
    std::vector<int> out = {peer()};
    while (another_follows() && accept(", ")) out.push_back(peer());
    return out;
  }

  std::vector<Buffer> buffers() {
    std::vector<Buffer> out = {buffer()};
    while (accept(", ")) out.push_back(buffer());
    return out;
  }

  Op op() {
    const std::string_view word = rest_.substr(0, rest_.find(' '));
    for (std::size_t i = 0; i < kOpNames.size(); ++i)
      if (word == kOpNames[i]) {
        rest_.remove_prefix(word.size());
        return static_cast<Op>(i);
      }
    fail("a step: send, recv, recv_reduce, copy, reduce, meet, reduce_from or store_to");
  }

  [[noreturn]] void fail(const std::string& expected) const {
    throw InvalidArgument(
        text("plan text, line ", number_, ": expected ", expected, ", got ", quoted(rest_)));
  }

 private:
  // Marks follow a comma as well.
  bool another_follows() const { return rest_.size() > 2 && rest_[2] >= '0' && rest_[2] <= '9'; }

  const int number_;
  std::string_view rest_;
};

// After " chunk C" of any step but meet.
void read_operands(Line& line, Step& step) {
  const auto src = [&](std::string_view before) { line.expect(before), step.src = line.buffer(); };
  const auto dst = [&](std::string_view before) { line.expect(before), step.dst = line.buffer(); };
  const auto peer = [&](std::string_view before) { line.expect(before), step.peers = {line.peer()}; };
  const auto peers = [&](std::string_view before) { line.expect(before), step.peers = line.peers(); };
  switch (step.op) {
    case Op::send:
      return src(" of "), peer(" to ");
    case Op::recv:
      return peer(" from "), dst(" into ");
    case Op::recv_reduce:
      return src(" of "), peer(" and from "), dst(" into ");
    case Op::copy:
      return src(" of "), dst(" into ");
    case Op::reduce:
      line.expect(" of ");
      step.sources = line.buffers();
      return dst(" into ");
    case Op::reduce_from:
      return src(" of "), peers(" of "), dst(" into ");
    case Op::store_to:
      return src(" of "), dst(" into "), peers(" of ");
    case Op::meet:
      return peers(" ");
  }
}

Step read_step(Line& line) {
  Step step{.op = line.op()};
  if (step.op != Op::meet) {
    line.expect(" chunk ");
    step.chunk = line.number("chunk", kMostChunks);
  }
  read_operands(line, step);
  step.pairwise = line.accept(", pairwise");
  step.final = line.accept(", final");
  step.publish = line.accept(", published");
  line.end();
  return step;
}

void read_stage(Line& line, Plan& plan) {
  const std::string heading = text("stage ", plan.stages.size());
  if (!line.is(heading)) line.fail(text("'", heading, plan.stages.empty() ? "'" : "' or a step"));
  plan.add_stage();
}

int read_chunks(Line& line) {
  line.expect("chunks ");
  const int chunks = line.number("chunk", kMostChunks + 1);
  line.end();
  return chunks;
}

}  // namespace

Plan plan_from_text(std::string_view source) {
  Plan plan;
  int number = 0;
  do {
    const std::size_t end = source.find('\n');
    Line line(++number, source.substr(0, end));
    if (end == std::string_view::npos) line.fail("a line with a newline at its end");
    source.remove_prefix(end + 1);
    if (number == 1) {
      plan.chunks = read_chunks(line);
    } else if (!plan.stages.empty() && line.accept("  ")) {
      plan.stages.back().steps.push_back(read_step(line));
    } else {
      read_stage(line, plan);
    }
  } while (!source.empty());
  return plan;
}

}  // namespace pycomm
