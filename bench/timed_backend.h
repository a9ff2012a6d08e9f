// A Backend that notes how long each operation of another one takes: where a step's time goes.
// Costs two clock reads an operation, and nothing when it is not put in between. Engine thread.
#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "engine/device/backend.h"

namespace sluice {

class TimedBackend final : public Backend {
 public:
  enum Stage {
    kEmbed,
    kRmsNorm,
    kLinear,
    kHeadLinear,
    kRopeWriteKv,
    kAttention,
    kGate,
    kFeedForward,
    kNumStages
  };
  static const char* StageName(int stage) {
    constexpr const char* kNames[kNumStages] = {
        "embedding",         "norms",     "projections", "per-head projections",
        "rope and KV write", "attention", "router",      "feed-forward"};
    return kNames[stage];
  }

  explicit TimedBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  // Seconds in each stage since the last call of Reset.
  const std::array<double, kNumStages>& seconds() const { return seconds_; }
  void Reset() { seconds_.fill(0); }

  DType dtype() const override { return inner_->dtype(); }
  std::string kernel_family() const override { return inner_->kernel_family(); }
  int num_threads() const override { return inner_->num_threads(); }
  void ParallelFor(int num_tasks, absl::FunctionRef<void(int task, int worker)> fn) override {
    inner_->ParallelFor(num_tasks, fn);
  }
  std::unique_ptr<PackedMatrix> Pack(const MatrixSource& source) override {
    return inner_->Pack(source);
  }
  std::unique_ptr<PackedMatrix> PackGateUp(const MatrixSource& gate,
                                           const MatrixSource& up) override {
    return inner_->PackGateUp(gate, up);
  }
  std::unique_ptr<PackedMatrix> PackF32(const MatrixSource& source) override {
    return inner_->PackF32(source);
  }
  std::unique_ptr<PackedMatrix> PackTable(const MatrixSource& source) override {
    return inner_->PackTable(source);
  }

  void Embed(const EmbedParams& params) override {
    Timed(kEmbed, [&] { inner_->Embed(params); });
  }
  void RmsNorm(const RmsNormParams& params) override {
    Timed(kRmsNorm, [&] { inner_->RmsNorm(params); });
  }
  void Linear(const LinearParams& params) override {
    Timed(kLinear, [&] { inner_->Linear(params); });
  }
  void HeadLinear(const HeadLinearParams& params) override {
    Timed(kHeadLinear, [&] { inner_->HeadLinear(params); });
  }
  void RopeWriteKv(const RopeWriteKvParams& params) override {
    Timed(kRopeWriteKv, [&] { inner_->RopeWriteKv(params); });
  }
  void MlaAttention(const MlaAttentionParams& params) override {
    Timed(kAttention, [&] { inner_->MlaAttention(params); });
  }
  void Gate(const GateParams& params) override {
    Timed(kGate, [&] { inner_->Gate(params); });
  }
  void FeedForward(const FeedForwardParams& params) override {
    Timed(kFeedForward, [&] { inner_->FeedForward(params); });
  }

 private:
  template <typename Fn>
  void Timed(Stage stage, const Fn& fn) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    seconds_[stage] +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  const std::unique_ptr<Backend> inner_;
  std::array<double, kNumStages> seconds_{};
};

}  // namespace sluice
