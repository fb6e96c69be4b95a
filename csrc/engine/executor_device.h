// The executor over a device's memory, by way of the host: a call runs piece by piece on pinned memory, each
// piece by a host executor, so that every algorithm, codec and transport serves such calls too. While one
// piece is worked on, the next comes from the device and the one before goes back, on streams of our own.
//
// What the caller had given its stream when it made the call happens before the arrays are touched. The call
// is done when its results lie on the device, so what anybody enqueues afterwards sees them, on any stream.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "core/device.h"
#include "engine/executor_host.h"
#include "engine/pieces.h"
#include "engine/pinned_memory.h"

namespace pycomm {

class DeviceExecutor final : public Executor {
 public:
  // The operation's views are of the device's memory; its layout is not looked at.
  DeviceExecutor(std::shared_ptr<const Operation> operation, const Placement& placement, Pieces pieces,
                 const Header& header, Router& router, Staging& staging, PinnedMemory& pinned);

  // Marks the caller's stream. Throws nothing, for the call has its number by then; begin() tells.
  void number(std::uint32_t sequence, std::uint32_t history, Tag tag) override;
  void begin() override;
  void end() override;
  bool advance() override;
  bool finished() const override { return back_ == pieces_.count(); }
  std::int64_t bytes_sent() const override;
  std::string waiting_for() const override;
  bool waits_for(int world_peer) const override;
  bool withdraw() override;

 private:
  static constexpr int kCells = 3;  // a piece that comes, one that is worked on, one that goes

  // Room for one piece.
  struct Cell {
    PinnedMemory::Block input;
    PinnedMemory::Block output;
    std::unique_ptr<Event> came;
    std::unique_ptr<Event> left;
  };
  struct Streams {
    std::unique_ptr<Stream> in;
    std::unique_ptr<Stream> out;
    std::unique_ptr<Event> in_idle;
    std::unique_ptr<Event> out_idle;
  };

  bool fetch();
  bool work();
  bool retire();
  void send_back(int piece);
  void start(int piece);
  void take_cells();
  View input_of(int piece) const;
  View output_of(int piece) const;
  Cell& cell(int piece) { return cells_[piece % kCells]; }
  const Cell& cell(int piece) const { return cells_[piece % kCells]; }

  const std::shared_ptr<const Operation> operation_;
  const Placement placement_;
  const Pieces pieces_;
  const Header header_;
  Router& router_;
  Staging& staging_;
  PinnedMemory& pinned_;

  std::uint32_t sequence_ = 0;
  std::uint32_t history_ = 0;
  Tag tag_;
  std::unique_ptr<Event> called_;  // on the caller's stream
  std::string unmarked_;           // why it could not be marked
  std::unique_ptr<Stream> caller_;

  std::optional<Streams> streams_;
  std::array<Cell, kCells> cells_;
  std::unique_ptr<HostExecutor> executor_;  // of piece done_, once it is there
  // Pieces before these have been asked of the device, worked on, and arrived there.
  int fetched_ = 0;
  int done_ = 0;
  int back_ = 0;
  std::int64_t bytes_sent_ = 0;  // of finished pieces
  bool withdrawn_ = false;
};

}  // namespace pycomm
