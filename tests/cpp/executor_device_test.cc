// Calls on a device's memory, on a double of one (fake_device.h): the same results as on host memory,
// whatever the collective, algorithm, codec and transport; and the double's mistakes are noticed.
#include "engine/executor_device.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "engines.h"
#include "fake_device.h"

namespace pycomm {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::uintptr_t kCallersStream = 7;
// Pieces of 32 segments of 256 bytes: 1024 elements of f32 in each of two arrays.
constexpr std::int64_t kTwoPieces = 1100, kManyPieces = 5003;

// An array of the device, and what the test sees of it.
struct Array {
  Array(FakeDevice& device, std::int64_t count, DType dtype)
      : memory(device, static_cast<std::size_t>(count * size_of(dtype))),
        on_device{memory.address(), count, dtype},
        contents{memory.contents(), count, dtype} {}
  FakeDevice::Memory memory;
  View on_device;
  View contents;
};

// Small whole numbers, different for each rank and element: sums are exact in every type.
void fill(const View& view, int rank) {
  for (std::int64_t i = 0; i < view.count; ++i) {
    const auto value = static_cast<float>((i + 3 * rank) % 5);
    const float source[] = {value};
    if (is_floating(view.dtype)) {
      kernels().cast[index_of(DType::f32)][index_of(view.dtype)](view.at(i), source, 1, 1.0);
    } else {
      std::memset(view.at(i), 0, static_cast<std::size_t>(size_of(view.dtype)));
      *reinterpret_cast<std::uint8_t*>(view.at(i)) = static_cast<std::uint8_t>(value);
    }
  }
}

// One for each rank. They outlive the engines, which keep memory pinned.
class Devices {
 public:
  explicit Devices(int size, Flaw flaw = Flaw::none) {
    for (int rank = 0; rank < size; ++rank)
      devices_.push_back(std::make_unique<FakeDevice>(static_cast<unsigned>(rank), flaw));
  }
  FakeDevice& operator[](int rank) { return *devices_[static_cast<std::size_t>(rank)]; }

 private:
  std::vector<std::unique_ptr<FakeDevice>> devices_;
};

Bytes bytes_of(const View& view) {
  return {view.data, view.data + view.bytes()};
}

// A call for arrays that have yet to be named.
struct Shape {
  Call call;
  std::int64_t input_count = 0;
  std::int64_t output_count = 0;
  enum { apart, same, part_of_input, part_of_output } in_place = apart;
};

Shape shape_of(Collective collective, int rank, int size, std::int64_t count, bool in_place,
               const std::vector<std::int64_t>& counts = {}) {
  Shape shape;
  shape.call.collective = collective;
  shape.call.root = is_pair(collective) ? 1 - rank : has_root(collective) ? size - 1 : 0;
  shape.call.counts = counts;
  if (collective == Collective::all_to_all) shape.call.received = counts;
  // Without counts these have equal parts.
  if (collective == Collective::gather || collective == Collective::scatter)
    count = (count + size - 1) / size * size;
  const Spec spec{collective, rank, size, shape.call.root};
  const int chunks = has_parts(collective) ? chunks_of_parts(collective, size) : 1;
  const Layout layout =
      counts.empty() ? Layout::even(spec, count, chunks) : Layout::chosen(spec, counts, shape.call.received);
  shape.input_count = layout.input_count();
  shape.output_count = layout.output_count();
  const bool always = collective == Collective::broadcast || is_pair(collective);
  if (!always && (!in_place || shape.input_count == 0 || shape.output_count == 0)) return shape;
  if (collective == Collective::reduce_scatter || collective == Collective::scatter)
    shape.in_place = Shape::part_of_input;
  else if (collective == Collective::all_gather || collective == Collective::gather)
    shape.in_place = Shape::part_of_output;
  else if (collective != Collective::all_to_all)
    shape.in_place = Shape::same;
  return shape;
}

// The call's views, where input and output have memory of their own that may not be used.
void place(Shape& shape, const View& input, const View& output, int rank, int size) {
  Call& call = shape.call;
  call.input = input;
  call.output = output;
  const Spec spec{call.collective, rank, size, call.root};
  const auto layout = [&] {
    if (!call.counts.empty()) return Layout::chosen(spec, call.counts, call.received);
    const bool whole_is_output = shape.in_place == Shape::part_of_output;
    const std::int64_t count = whole_is_output ? shape.output_count : shape.input_count;
    return Layout::even(spec, count, has_parts(call.collective) ? chunks_of_parts(call.collective, size) : 1);
  };
  if (shape.in_place == Shape::same) call.output = call.input;
  if (shape.in_place == Shape::part_of_input) call.output.data = input.at(layout().offset(kInput, rank));
  if (shape.in_place == Shape::part_of_output) call.input.data = output.at(layout().offset(kOutput, rank));
}

// The input is filled where the call has it, which may be in the output.
Bytes result_on_host(Communicator& communicator, Shape shape, DType dtype) {
  const auto room = [&](std::int64_t count) {
    return Bytes(static_cast<std::size_t>(count * size_of(dtype)));
  };
  Bytes input = room(shape.input_count), output = room(shape.output_count);
  place(shape, {input.data(), shape.input_count, dtype}, {output.data(), shape.output_count, dtype},
        communicator.rank(), communicator.size());
  fill(shape.call.input, communicator.rank());
  wait(communicator, communicator.submit(shape.call));
  return bytes_of(shape.call.output);
}

// The caller's own work fills the input, late.
Bytes result_on_device(Communicator& communicator, FakeDevice& device, Shape shape, DType dtype) {
  const int rank = communicator.rank();
  const auto arrays = std::make_shared<std::pair<Array, Array>>(
      std::piecewise_construct, std::forward_as_tuple(device, shape.input_count, dtype),
      std::forward_as_tuple(device, shape.output_count, dtype));
  const auto& [input, output] = *arrays;
  place(shape, input.contents, output.contents, rank, communicator.size());
  const View filled = shape.call.input, result = shape.call.output;
  place(shape, input.on_device, output.on_device, rank, communicator.size());
  shape.call.keepalive = arrays;
  shape.call.placement = {&device, FakeDevice::kCard, kCallersStream};
  device.enqueue(kCallersStream, [=] { fill(filled, rank); });
  wait(communicator, communicator.submit(shape.call));
  return bytes_of(result);
}

void check_like_host(Communicator& communicator, FakeDevice& device, const Shape& shape, DType dtype) {
  const Bytes expected = result_on_host(communicator, shape, dtype);
  const Bytes result = result_on_device(communicator, device, shape, dtype);
  CHECK_EQ(result == expected, true, name_of(shape.call.collective), " by ", shape.call.algorithm, ", rank ",
           communicator.rank(), " of ", communicator.size(), ", ", name_of(dtype), " x ", shape.input_count,
           ", codec ", shape.call.codec, ", in place ", int{shape.in_place});
}

Call sum_of(const std::shared_ptr<Array>& array, FakeDevice& device) {
  Call call = all_reduce(array->on_device);
  call.placement = {&device, FakeDevice::kCard, kCallersStream};
  call.keepalive = array;
  return call;
}

bool can_run(const Algorithm& algorithm, const Communicator& communicator, const Options& options) {
  const bool one_node = is_mapped(options.transport) && communicator.nodes().size() == 1;
  return (!algorithm.supports || algorithm.supports(communicator.size())) &&
         (!algorithm.mapped || one_node || communicator.size() == 1);
}

void check_every_algorithm(const Options& options, int size, const std::vector<std::int64_t>& sizes) {
  Devices devices(size);
  run_engines(size, options, [&](const std::shared_ptr<Communicator>& communicator) {
    FakeDevice& device = devices[communicator->rank()];
    for (int c = 0; c < kCollectiveCount; ++c) {
      const auto collective = static_cast<Collective>(c);
      if (collective == Collective::barrier || is_pair(collective)) continue;
      for (const Algorithm* algorithm : algorithms_for(collective)) {
        if (!can_run(*algorithm, *communicator, options)) continue;
        for (const std::int64_t count : sizes)
          for (const bool in_place : {false, true}) {
            Shape shape = shape_of(collective, communicator->rank(), size, count, in_place);
            shape.call.algorithm = short_name(*algorithm);
            check_like_host(*communicator, device, shape, DType::f32);
          }
      }
    }
  });
}

// Two ranks, over a device that may have a flaw; whether a sum of several pieces comes out right.
bool sums_right(Flaw flaw) {
  std::atomic<bool> right = true;
  Devices devices(2, flaw);
  run_engines(2, {}, [&](const std::shared_ptr<Communicator>& communicator) {
    FakeDevice& device = devices[communicator->rank()];
    const Shape shape = shape_of(Collective::all_reduce, communicator->rank(), 2, kManyPieces, true);
    const Bytes expected = result_on_host(*communicator, shape, DType::f32);
    if (result_on_device(*communicator, device, shape, DType::f32) != expected) right = false;
  });
  return right;
}

}  // namespace

TEST(every_algorithm_serves_a_device_by_messages) {
  for (const int size : {1, 2, 3, 4, 5}) check_every_algorithm({}, size, {0, 1, size + 1, kManyPieces});
  check_every_algorithm({}, 8, {kTwoPieces});
}

TEST(every_algorithm_serves_a_device_where_memory_is_mapped) {
  for (const char* transport : {"inproc_mapped", "shm"})
    for (const int size : {1, 2, 3}) check_every_algorithm({.transport = transport}, size, {kManyPieces});
  check_every_algorithm({.transport = "inproc_mapped"}, 5, {kTwoPieces});
}

TEST(every_algorithm_serves_a_device_on_several_nodes) {
  check_every_algorithm({.transport = "inproc_mapped", .nodes = {0, 0, 1}}, 3, {kManyPieces});
  check_every_algorithm({.transport = "shm", .nodes = {0, 1, 0, 1}}, 4, {kManyPieces});
}

TEST(every_dtype_op_and_codec_serves_a_device) {
  for (const int size : {2, 3}) {
    Devices devices(size);
    run_engines(size, {.progress_thread = true}, [&](const std::shared_ptr<Communicator>& communicator) {
      FakeDevice& device = devices[communicator->rank()];
      for (int d = 0; d < kDTypeCount; ++d)
        for (int o = 0; o < kReduceOpCount; ++o)
          for (const char* codec : {"none", "fp16", "bf16"}) {
            const auto dtype = static_cast<DType>(d);
            const auto op = static_cast<ReduceOp>(o);
            const bool summed = op == ReduceOp::sum || op == ReduceOp::avg;
            const bool carried = summed && is_floating(dtype) && !is_half(dtype);
            if (std::string(codec) != "none" && !carried) continue;
            for (const Collective collective : {Collective::all_reduce, Collective::reduce_scatter}) {
              Shape shape = shape_of(collective, communicator->rank(), size, kManyPieces, false);
              shape.call.op = op;
              shape.call.codec = codec;
              shape.call.order = Order::rank;  // the same bits however it is cut
              check_like_host(*communicator, device, shape, dtype);
            }
          }
    });
  }
}

TEST(parts_of_chosen_sizes_serve_a_device) {
  const std::vector<std::int64_t> counts = {0, 3001, 1, 700};
  Devices devices(4);
  run_engines(4, {}, [&](const std::shared_ptr<Communicator>& communicator) {
    const int rank = communicator->rank();
    FakeDevice& device = devices[rank];
    for (const Collective collective :
         {Collective::reduce_scatter, Collective::all_gather, Collective::gather, Collective::scatter})
      for (const bool in_place : {false, true})
        check_like_host(*communicator, device, shape_of(collective, rank, 4, 0, in_place, counts),
                        DType::f32);
    Shape shape = shape_of(Collective::all_to_all, rank, 4, 0, false, {9, 9, 9, 9});
    for (int peer = 0; peer < 4; ++peer)
      shape.call.counts[peer] = shape.call.received[peer] = 500 * (rank + peer);
    shape.input_count = shape.output_count = 500 * (4 * rank + 6);
    check_like_host(*communicator, device, shape, DType::f32);
  });
}

TEST(messages_between_two_devices_arrive) {
  Devices devices(2);
  run_engines(2, {}, [&](const std::shared_ptr<Communicator>& communicator) {
    const int rank = communicator->rank();
    FakeDevice& device = devices[rank];
    const auto collective = rank == 0 ? Collective::send : Collective::recv;
    for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, kManyPieces}) {
      const Bytes result =
          result_on_device(*communicator, device, shape_of(collective, rank, 2, count, true), DType::f32);
      Bytes expected(static_cast<std::size_t>(4 * count));
      fill({expected.data(), count, DType::f32}, 0);
      CHECK(result == expected);
    }
  });
}

TEST(a_prepared_call_on_a_device_runs_again_and_again) {
  Devices devices(3);
  run_engines(3, {.transport = "inproc_mapped"}, [&](const std::shared_ptr<Communicator>& communicator) {
    const int rank = communicator->rank();
    FakeDevice& device = devices[rank];
    const auto array = std::make_shared<Array>(device, kManyPieces, DType::f32);
    const Prepared prepared = communicator->prepare(sum_of(array, device));
    int blocks = 0;
    for (int round = 0; round < 5; ++round) {
      device.enqueue(kCallersStream, [=, view = array->contents] { fill(view, rank + round); });
      wait(*communicator, communicator->start(prepared));
      std::vector<float> sums(kManyPieces), term(kManyPieces);
      for (int r = 0; r < 3; ++r) {
        fill(view_of(term), r + round);
        for (std::int64_t i = 0; i < kManyPieces; ++i) sums[i] += term[i];
      }
      CHECK(bytes_of(array->contents) == bytes_of(view_of(sums)));
      if (round == 0) blocks = device.locked_blocks();
      CHECK_EQ(device.locked_blocks(), blocks);  // locked once
    }
    CHECK(blocks > 0);
  });
}

TEST(a_forgotten_wait_for_the_callers_stream_is_noticed) {
  CHECK(sums_right(Flaw::none));
  CHECK(!sums_right(Flaw::forgets_waits));
}

TEST(work_on_a_piece_before_it_has_come_is_noticed) {
  CHECK(!sums_right(Flaw::answers_at_once));
}

TEST(a_device_and_a_host_do_not_match) {
  Devices devices(2);
  const auto mixed = [&](const std::shared_ptr<Communicator>& communicator) {
    const auto array = std::make_shared<Array>(devices[0], 10, DType::f32);
    std::vector<float> values(10);
    const bool on_device = communicator->rank() == 0;
    Call call = on_device ? sum_of(array, devices[0]) : all_reduce(view_of(values));
    wait(*communicator, communicator->submit(std::move(call)));
  };
  CHECK_THROWS(run_engines(2, {}, mixed), MismatchError, "f32 x 10 on a device");
}

// Every rank is told, whether its device fails when the call is made or when it copies, and submit() does not
// throw.
TEST(a_device_that_fails_breaks_the_communicator_on_all_ranks) {
  for (const Flaw flaw : {Flaw::fails_copies, Flaw::fails_marks}) {
    Devices whole(2), broken(2, flaw);
    run_engines(2, {}, [&](const std::shared_ptr<Communicator>& communicator) {
      const int rank = communicator->rank();
      FakeDevice& device = rank == 0 ? broken[rank] : whole[rank];
      const auto array = std::make_shared<Array>(device, kManyPieces, DType::f32);
      const auto work = communicator->submit(sum_of(array, device));
      CHECK_THROWS(wait(*communicator, work), Error, "the card has fallen off");
    });
  }
}

TEST(a_device_call_that_nobody_answers_times_out_and_says_where) {
  Devices devices(2);
  run_engines(2, {}, [&](const std::shared_ptr<Communicator>& communicator) {
    if (communicator->rank() == 1) return;
    const auto array = std::make_shared<Array>(devices[0], kManyPieces, DType::f32);
    Call call = sum_of(array, devices[0]);
    call.timeout_s = 0.2;
    const auto work = communicator->submit(std::move(call));
    CHECK_THROWS(wait(*communicator, work), Error, "in piece 1 of 5");
  });
}

}  // namespace pycomm
