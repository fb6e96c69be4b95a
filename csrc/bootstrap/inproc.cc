#include "bootstrap/inproc.h"

#include <algorithm>
#include <chrono>

#include "bootstrap/bootstrap.h"
#include "core/error.h"

namespace pycomm {

InprocBoard::InprocBoard(int size) : here_(std::max(size, 0)), written_(here_.size()) {
  PYCOMM_CHECK(size >= 1, "a board for ", size, " ranks: expected at least 1");
}

std::vector<std::string> InprocBoard::exchange(int rank, const std::string& bytes, double timeout_s) {
  PYCOMM_CHECK(rank >= 0 && rank < size(), "rank ", rank, " is not one of the ", size(),
               " ranks of this world");
  std::unique_lock lock(mutex_);
  if (!broken_.empty()) throw TransportError(broken_);
  PYCOMM_CHECK(!here_[rank], "rank ", rank, " is at the board already: two threads claim it");
  here_[rank] = true;
  written_[rank] = bytes;
  const std::uint64_t mine = round_;
  if (std::count(here_.begin(), here_.end(), true) == size()) {
    result_.swap(written_);
    here_.assign(here_.size(), false);
    written_.assign(here_.size(), "");
    ++round_;
    changed_.notify_all();
    return result_;
  }
  const auto over = [&] { return round_ != mine || !broken_.empty(); };
  if (!changed_.wait_for(lock, std::chrono::duration<double>(timeout_s), over)) {
    give_up(text("rank ", rank, " waited ", timeout_s, " s for ", missing()));
    throw Timeout(broken_);
  }
  if (round_ == mine) throw TransportError(broken_);
  return result_;
}

void InprocBoard::abort(const std::string& why) {
  const std::lock_guard lock(mutex_);
  give_up(why);
}

void InprocBoard::give_up(const std::string& why) {
  if (broken_.empty()) broken_ = "the ranks could not exchange addresses: " + why;
  changed_.notify_all();
}

std::string InprocBoard::missing() const {
  std::string ranks;
  for (int rank = 0; rank < size(); ++rank)
    if (!here_[rank]) ranks += text(ranks.empty() ? "rank " : ", ", rank);
  return ranks;
}

namespace {

class InprocBootstrap final : public Bootstrap {
 public:
  InprocBootstrap(InprocBoard& board, int rank) : board_(board), rank_(rank) {}
  std::vector<std::string> exchange(const std::string& bytes, double timeout_s) override {
    return board_.exchange(rank_, bytes, timeout_s);
  }

 private:
  InprocBoard& board_;
  const int rank_;
};

std::unique_ptr<Bootstrap> create(const Environment& environment) {
  const auto handle = environment.handles.find("inproc_board");
  if (handle == environment.handles.end()) return nullptr;
  auto& board = *reinterpret_cast<InprocBoard*>(handle->second);
  PYCOMM_CHECK(environment.size == board.size(), "rank ", environment.rank, " of ", environment.size,
               " at a board for ", board.size(), " ranks");
  return std::make_unique<InprocBootstrap>(board, environment.rank);
}

const Register<BootstrapEntry> kInproc({.name = "inproc", .create = create});

}  // namespace
}  // namespace pycomm
