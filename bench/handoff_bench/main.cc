// How fast KV blocks move from process to process by the shipped handoff (grants, checksums,
// acknowledgements), beside UCX's own benchmark with messages of the same size in the same run; and
// how much of a transfer is left to wait for when chunks are sent while the next is computed.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/handoff_bench/one_core.h"
#include "bench/handoff_bench/transfer_pair.h"
#include "bench/handoff_bench/ucx_perftest.h"
#include "common/log.h"
#include "kvtransfer/agent/transfer_agent.h"

namespace sluice::bench {
namespace {

constexpr char kExamples[] =
    "Examples:\n"
    "  handoff_bench                                 shared memory and TCP, blocks of "
    "deepseek-tiny\n"
    "  handoff_bench --tls tcp --block-bytes 4497408 blocks of DeepSeek-V3 (61 layers)\n"
    "\n"
    "Figures are medians. perftest passes one hot buffer and checks nothing: it needs the package\n"
    "ucx-utils.\n";

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double MillisecondsPerTransfer(const PairOptions& options, const PairResult& result) {
  return 1e3 * static_cast<double>(options.blocks_per_transfer) *
         static_cast<double>(options.block_bytes) / result.bytes_per_second;
}

// As when the other cores compute: the two sides have to take turns.
absl::StatusOr<PairResult> RunPairOnOneCore(const PairOptions& options, int num_warm_up,
                                            int num_counted) {
  const OneCore one_core;
  if (!one_core.is_set()) return absl::UnavailableError("cannot keep both sides on one core");
  return RunPair(options, num_warm_up, num_counted);
}

int Main(int argc, char** argv) {
  CLI::App app("Speed of the KV handoff between two processes.");
  app.footer(kExamples);
  std::vector<std::string> transports = {"sysv,self", "tcp"};
  PairOptions options;
  options.block_bytes = 442368;
  options.blocks_per_transfer = 64;
  int reps = 5, transfers = 40;
  double chunk_ms = 20;
  app.add_option("--tls", transports, "UCX_TLS of both sides; several are measured in turn");
  app.add_option("--block-bytes", options.block_bytes, "Of one KV block of 64 tokens, all layers")
      ->check(CLI::Range(64, 1 << 28));
  app.add_option("--blocks", options.blocks_per_transfer, "A transfer")->check(CLI::Range(1, 4096));
  app.add_option("--transfers", transfers, "A repetition")->check(CLI::Range(1, 10000));
  app.add_option("--reps", reps, "Repetitions, in turn with perftest")->check(CLI::Range(1, 100));
  app.add_option("--chunk-ms", chunk_ms, "Computing 8 blocks (512 tokens), in the overlapped run")
      ->check(CLI::Range(0.1, 10000.0));
  CLI11_PARSE(app, argc, argv);
  InitLogging({.process_name = "handoff_bench", .level = LogLevel::kError});

  const uint64_t message_bytes =
      std::max<uint64_t>(TransferOptions().target_message_bytes / options.block_bytes, 1) *
      options.block_bytes;
  std::printf("blocks of %llu bytes, %d a transfer, messages of %llu bytes\n",
              static_cast<unsigned long long>(options.block_bytes), options.blocks_per_transfer,
              static_cast<unsigned long long>(message_bytes));
  for (const std::string& tls : transports) {
    options.tls = tls;
    std::vector<double> handoff, perftest;
    std::string transport, why_not;
    options.chunk_blocks = options.blocks_per_transfer;
    options.chunk_duration = absl::ZeroDuration();
    options.num_transfers_at_once = 2;
    for (int rep = 0; rep < reps; ++rep) {
      const absl::StatusOr<PairResult> result = RunPair(options, /*num_warm_up=*/4, transfers);
      if (!result.ok()) {
        std::fprintf(stderr, "%s: %s\n", tls.c_str(), result.status().ToString().c_str());
        return 1;
      }
      transport = result->transport;
      handoff.push_back(result->bytes_per_second);
      const absl::StatusOr<double> peer = UcxPerftestBytesPerSecond(tls, message_bytes, 2000);
      if (peer.ok()) perftest.push_back(*peer);
      if (!peer.ok()) why_not = std::string(peer.status().message());
    }
    std::printf("%-10s %-5s handoff %6.2f GB/s", tls.c_str(), transport.c_str(),
                Median(handoff) / 1e9);
    if (perftest.empty()) {
      std::printf("   (%s)\n", why_not.c_str());
    } else {
      std::printf("   perftest %6.2f GB/s   %.0f %%\n", Median(perftest) / 1e9,
                  100 * Median(handoff) / Median(perftest));
    }

    options.num_transfers_at_once = 1;
    options.chunk_blocks = std::min(8, options.blocks_per_transfer);
    PairOptions last_chunk = options;
    last_chunk.blocks_per_transfer = options.chunk_blocks;
    options.chunk_duration = absl::Seconds(chunk_ms / 1e3);
    const absl::StatusOr<PairResult> alone = RunPair(last_chunk, 4, 20);
    const absl::StatusOr<PairResult> crowded = RunPairOnOneCore(last_chunk, 4, 20);
    const absl::StatusOr<PairResult> overlapped = RunPair(options, 1, 5);
    for (const absl::StatusOr<PairResult>* result : {&alone, &crowded, &overlapped}) {
      if (result->ok()) continue;
      std::fprintf(stderr, "%s: %s\n", tls.c_str(), result->status().ToString().c_str());
      return 1;
    }
    std::printf(
        "%-10s %-5s %d chunks of %d blocks, one every %.0f ms: %.2f ms from the end of the "
        "last to verified; a transfer of one chunk alone takes %.2f ms, with both sides on one "
        "core "
        "%.2f ms\n",
        tls.c_str(), overlapped->transport.c_str(),
        (options.blocks_per_transfer + options.chunk_blocks - 1) / options.chunk_blocks,
        options.chunk_blocks, chunk_ms, absl::ToDoubleMilliseconds(overlapped->median_exposed),
        MillisecondsPerTransfer(last_chunk, *alone), MillisecondsPerTransfer(last_chunk, *crowded));
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) { return sluice::bench::Main(argc, argv); }
