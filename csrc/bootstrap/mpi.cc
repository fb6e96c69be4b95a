// The exchange over MPI. Everything is a non-blocking collective on a duplicate of the given communicator, so
// that a rank which never comes ends in Timeout, and nothing of ours can meet the user's own messages.
#include <mpi.h>

#include <chrono>
#include <climits>
#include <numeric>
#include <thread>

#include "bootstrap/bootstrap.h"
#include "core/error.h"

namespace pycomm {
namespace {

using Clock = std::chrono::steady_clock;

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char why[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, why, &length);
  throw TransportError(text(call, " failed while the ranks exchanged addresses: ", why));
}

// A collective in flight writes here. It cannot be cancelled: after a timeout the block is leaked on purpose.
struct Exchange {
  explicit Exchange(const std::string& bytes, int ranks) : mine(bytes), sizes(ranks), offsets(ranks) {}

  std::string mine;
  int mine_bytes = static_cast<int>(mine.size());
  std::vector<int> sizes, offsets;
  std::string all;
  MPI_Comm duplicate = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
};

bool runs() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

class MpiBootstrap final : public Bootstrap {
 public:
  MpiBootstrap(MPI_Comm user, int size) : user_(user), size_(size) {}

  ~MpiBootstrap() override {
    if (own_ != MPI_COMM_NULL && !broken_ && runs()) MPI_Comm_free(&own_);
  }

  std::vector<std::string> exchange(const std::string& bytes, double timeout_s) override {
    PYCOMM_CHECK(bytes.size() <= INT_MAX, "exchange of ", bytes.size(), " bytes: expected at most ", INT_MAX);
    if (broken_) throw TransportError("an earlier exchange of addresses failed");
    broken_ = true;  // until we come to the end
    deadline_ =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s));
    timeout_s_ = timeout_s;
    auto round = std::make_unique<Exchange>(bytes, size_);
    if (own_ == MPI_COMM_NULL) duplicate(round);
    gather_sizes(round);
    gather(round);
    broken_ = false;
    return cut(*round);
  }

 private:
  void duplicate(std::unique_ptr<Exchange>& round) {
    check(MPI_Comm_idup(user_, &round->duplicate, &round->request), "MPI_Comm_idup");
    finish(round, "MPI_Comm_idup");
    own_ = round->duplicate;
    check(MPI_Comm_set_errhandler(own_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }

  void gather_sizes(std::unique_ptr<Exchange>& round) {
    check(MPI_Iallgather(&round->mine_bytes, 1, MPI_INT, round->sizes.data(), 1, MPI_INT, own_,
                         &round->request),
          "MPI_Iallgather");
    finish(round, "MPI_Iallgather");
    const std::int64_t total = std::accumulate(round->sizes.begin(), round->sizes.end(), std::int64_t{0});
    PYCOMM_CHECK(total <= INT_MAX, "exchange of ", total, " bytes by all ranks: expected at most ", INT_MAX);
    std::exclusive_scan(round->sizes.begin(), round->sizes.end(), round->offsets.begin(), 0);
    round->all.resize(static_cast<std::size_t>(total));
  }

  void gather(std::unique_ptr<Exchange>& round) {
    check(MPI_Iallgatherv(round->mine.data(), round->mine_bytes, MPI_BYTE, round->all.data(),
                          round->sizes.data(), round->offsets.data(), MPI_BYTE, own_, &round->request),
          "MPI_Iallgatherv");
    finish(round, "MPI_Iallgatherv");
  }

  void finish(std::unique_ptr<Exchange>& round, const char* call) {
    for (int tries = 0;; ++tries) {
      int done = 0;
      const int code = MPI_Test(&round->request, &done, MPI_STATUS_IGNORE);
      if (code != MPI_SUCCESS) round.release();
      check(code, call);
      if (done) return;
      if (Clock::now() > deadline_) {
        round.release();
        throw Timeout(text("not all of the ", size_, " ranks came to exchange addresses within ", timeout_s_,
                           " s: this rank waits in ", call));
      }
      if (tries < 1000)
        std::this_thread::yield();
      else
        std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  }

  static std::vector<std::string> cut(const Exchange& round) {
    std::vector<std::string> out;
    for (std::size_t rank = 0; rank < round.sizes.size(); ++rank)
      out.push_back(round.all.substr(round.offsets[rank], round.sizes[rank]));
    return out;
  }

  const MPI_Comm user_;
  const int size_;
  MPI_Comm own_ = MPI_COMM_NULL;
  bool broken_ = false;  // a collective may still be in flight: the duplicate cannot be freed or used
  Clock::time_point deadline_;
  double timeout_s_ = 0;
};

std::unique_ptr<Bootstrap> create(const Environment& environment) {
  const auto handle = environment.handles.find("mpi");
  if (handle == environment.handles.end() || !runs()) return nullptr;
  const MPI_Comm user = MPI_Comm_f2c(static_cast<MPI_Fint>(handle->second));
  PYCOMM_CHECK(user != MPI_COMM_NULL, "the handle 'mpi' is MPI_COMM_NULL");
  int size = 0;
  check(MPI_Comm_size(user, &size), "MPI_Comm_size");
  PYCOMM_CHECK(size == environment.size, "rank ", environment.rank, " of ", environment.size,
               " on an MPI communicator of ", size, " ranks");
  return std::make_unique<MpiBootstrap>(user, size);
}

const Register<BootstrapEntry> kMpi({.name = "mpi", .create = create});

}  // namespace
}  // namespace pycomm
