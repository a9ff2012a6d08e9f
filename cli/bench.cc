// sluice bench: load on a cluster, and what it answered.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "bench/loadgen/http_models.h"
#include "bench/loadgen/plot.h"
#include "bench/loadgen/scenario.h"
#include "bench/loadgen/summary.h"
#include "bench/loadgen/target.h"
#include "cli/commands.h"
#include "cli/run_dir.h"
#include "cli/server_address.h"
#include "common/progress_bar.h"
#include "common/status_macros.h"
#include "services/rpc/grpc_options.h"
#include "sluice/v1/generation.grpc.pb.h"

namespace sluice::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  sluice bench                                            8 streams of 512 prompt and 64 output tokens
  sluice bench --concurrency 32 --prompt-tokens 1024 --requests 200
  sluice bench --rate 5 --requests 300 --slo-ttft-ms 500 --slo-tpot-ms 20      open loop, goodput
  sluice bench --trace conversation.jsonl --length-scale 0.03 --requests 500   Mooncake's trace format
  sluice bench --preset ttft --json ttft.json --plot ttft.svg
  sluice bench --url http://127.0.0.1:8000 --model deepseek-tiny               any OpenAI-compatible server
Presets: ttft (over prompt lengths), concurrency (10 to 100 at 1,024 tokens), cached (the same prompts twice).
Times are measured here: from sending the request, with --rate and --trace from when it was due. TPOT is
(last - first token) / (tokens - 1).)";

// Requests in flight, unless --concurrency says otherwise.
constexpr int kClosedLoopConcurrency = 8;
constexpr int kOpenLoopConcurrency = 512;

struct BenchFlags {
  ServerFlags server;
  std::string url;
  bool grpc = false;
  std::string model;
  std::string preset;
  std::string json_path;
  std::string plot_path;
  loadgen::ScenarioOptions scenario;
  loadgen::TraceWorkloadOptions trace;
  std::optional<int> concurrency;
  std::optional<int> max_model_len;
  double rate = 0;
  double timeout_seconds = 300;
  loadgen::Slo slo;
  bool quiet = false;
};

struct ServedModel {
  std::string id;
  int max_model_len = 0;  // 0: it does not say
};

absl::StatusOr<ServedModel> AskForModel(const std::string& address) {
  const auto stub = v1::Generation::NewStub(rpc::MakeChannel(address));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
  v1::ListModelsResponse response;
  const grpc::Status status = stub->ListModels(&context, v1::ListModelsRequest(), &response);
  if (!status.ok()) return ExplainRpcError(status, context, address);
  if (response.models_size() == 0) {
    return absl::UnavailableError(absl::StrCat(address, " serves no model yet"));
  }
  return ServedModel{response.models(0).id(), response.models(0).max_model_len()};
}

// What was asked for, else the HTTP port of the cluster of --run-dir.
std::string HttpUrl(const BenchFlags& flags) {
  if (!flags.url.empty()) return flags.url;
  const std::string run_dir = flags.server.run_dir.empty() ? DefaultRunDir() : flags.server.run_dir;
  if (const auto cluster = ReadClusterInfo(run_dir);
      cluster.ok() && !cluster->http_address.empty()) {
    return absl::StrCat("http://", cluster->http_address);
  }
  return "http://127.0.0.1:8000";
}

// The model's context, as the server of --url says; tells when it does not.
int ContextOfUrl(const BenchFlags& flags) {
  const absl::StatusOr<int> answer =
      loadgen::AskMaxModelLen(flags.url, flags.model, absl::Seconds(5));
  if (answer.ok()) return *answer;
  std::cerr << flags.url << " does not say how long the model's context is ("
            << answer.status().message() << "); " << flags.scenario.max_model_len
            << " tokens are assumed, --max-model-len says otherwise\n";
  return flags.scenario.max_model_len;
}

// Of the context, 7/8 are for the prompt and the rest for the answer.
absl::StatusOr<loadgen::TraceWorkload> LoadTrace(const BenchFlags& flags) {
  loadgen::TraceWorkloadOptions options = flags.trace;
  const int context = flags.scenario.max_model_len;
  options.max_requests = flags.scenario.workload.num_requests;
  options.max_prompt_tokens = static_cast<int>(int64_t{context} * 7 / 8);
  options.max_output_tokens = context / 8 - 1;
  options.seed = flags.scenario.workload.seed;
  SLUICE_ASSIGN_OR_RETURN(loadgen::TraceWorkload trace, loadgen::LoadTraceWorkload(options));
  if (trace.num_left_out > 0) {
    std::cerr << trace.num_left_out << " requests of the trace were left out: their prompts are "
              << "longer than " << options.max_prompt_tokens << " tokens, 7/8 of the model's "
              << "context (--length-scale makes them shorter)\n";
  }
  if (trace.num_cut > 0) {
    std::cerr << trace.num_cut << " of " << trace.requests.size() << " answers were cut to "
              << options.max_output_tokens << " tokens, 1/8 of the model's context\n";
  }
  return trace;
}

absl::StatusOr<loadgen::Scenario> MakeScenario(BenchFlags flags) {
  if (!flags.preset.empty()) return loadgen::PresetScenario(flags.preset, flags.scenario);
  loadgen::RunOptions& run = flags.scenario.run;
  run.open_loop = flags.rate > 0 || !flags.trace.path.empty();
  run.concurrency =
      flags.concurrency.value_or(run.open_loop ? kOpenLoopConcurrency : kClosedLoopConcurrency);
  if (!flags.trace.path.empty()) {
    SLUICE_ASSIGN_OR_RETURN(loadgen::TraceWorkload trace, LoadTrace(flags));
    return loadgen::SingleScenario(flags.scenario, std::move(trace.requests),
                                   absl::StrCat("Trace ", flags.trace.path));
  }
  flags.scenario.workload.requests_per_second = flags.rate;
  SLUICE_ASSIGN_OR_RETURN(std::vector<loadgen::PlannedRequest> workload,
                          loadgen::MakeRandomWorkload(flags.scenario.workload));
  return loadgen::SingleScenario(
      flags.scenario, std::move(workload),
      absl::StrCat(flags.scenario.workload.prompt_tokens, " prompt and ",
                   flags.scenario.workload.output_tokens, " output tokens"));
}

// Before minutes of load, not after them.
absl::Status CheckWritable(const std::string& path) {
  namespace fs = std::filesystem;
  if (path.empty()) return absl::OkStatus();
  const fs::path folder = fs::absolute(path).parent_path();
  std::error_code error;
  if (fs::is_directory(path, error) || access(folder.c_str(), W_OK) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc);
  file << text;
  file.flush();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

absl::Status Bench(BenchFlags flags) {
  if (!flags.server.server.empty() && !flags.grpc) {
    return absl::InvalidArgumentError(
        "--server names a router's gRPC: add --grpc to load that, or name its HTTP with --url "
        "http://HOST:PORT --model NAME");
  }
  SLUICE_RETURN_IF_ERROR(CheckWritable(flags.json_path));
  SLUICE_RETURN_IF_ERROR(CheckWritable(flags.plot_path));
  uint64_t& seed = flags.scenario.workload.seed;
  if (seed == 0) seed = static_cast<uint64_t>(absl::ToUnixMillis(absl::Now()));
  const bool own_cluster = flags.url.empty();
  ServedModel served{flags.model, 0};
  std::string address;
  if (own_cluster) {
    SLUICE_ASSIGN_OR_RETURN(address, ServerAddress(flags.server));
    SLUICE_ASSIGN_OR_RETURN(served, AskForModel(address));
    if (flags.model.empty()) flags.model = served.id;
    if (served.max_model_len > 0) flags.scenario.max_model_len = served.max_model_len;
  } else if (flags.model.empty()) {
    return absl::InvalidArgumentError("--url needs --model, the name the server knows it by");
  }
  absl::StatusOr<loadgen::TargetFactory> targets =
      flags.grpc ? loadgen::GrpcTargets(address, flags.model)
                 : loadgen::HttpTargets(HttpUrl(flags), flags.model);
  if (!targets.ok()) return targets.status();
  if (flags.max_model_len.has_value()) {
    flags.scenario.max_model_len = *flags.max_model_len;
  } else if (!own_cluster && !(flags.preset.empty() && flags.trace.path.empty())) {
    flags.scenario.max_model_len = ContextOfUrl(flags);
  }
  SLUICE_ASSIGN_OR_RETURN(const loadgen::Scenario scenario, MakeScenario(flags));

  std::cout << scenario.title << ", model " << flags.model << ", " << (flags.grpc ? "gRPC" : "HTTP")
            << ", seed " << flags.scenario.workload.seed << "\n"
            << loadgen::TableHead() << std::flush;
  std::vector<loadgen::Summary> summaries;
  for (const loadgen::ScenarioRun& run : scenario.runs) {
    loadgen::RunOptions options = run.options;
    options.request_timeout = absl::Seconds(flags.timeout_seconds);
    if (!run.warm_up.empty()) {
      loadgen::RunOptions warm_up = options;
      warm_up.open_loop = false;
      const loadgen::Summary warmed_up = loadgen::Summarize(
          "warm-up", 0, loadgen::RunWorkload(run.warm_up, *targets, warm_up), flags.slo);
      if (warmed_up.failed == warmed_up.requests) {
        return absl::UnavailableError(
            absl::StrCat("no request before the run succeeded: ", warmed_up.first_error));
      }
    }
    if (!flags.quiet) {
      options.on_progress = [&run](int finished, int total) {
        ShowProgress(run.name, static_cast<double>(finished) / total,
                     absl::StrCat(finished, "/", total));
      };
    }
    const loadgen::RunResult result = loadgen::RunWorkload(run.workload, *targets, options);
    summaries.push_back(loadgen::Summarize(run.name, run.x, result, flags.slo));
    ClearProgress();
    std::cout << loadgen::TableRow(summaries.back()) << std::flush;
  }
  std::cout << loadgen::Remarks(summaries);
  if (!flags.json_path.empty()) {
    SLUICE_RETURN_IF_ERROR(
        WriteFile(flags.json_path, loadgen::FormatJson(summaries, scenario.title)));
  }
  if (!flags.plot_path.empty()) {
    SLUICE_RETURN_IF_ERROR(
        WriteFile(flags.plot_path, loadgen::PlotSvg(summaries, scenario.title, scenario.x_label)));
  }
  for (const loadgen::Summary& summary : summaries) {
    if (summary.failed == summary.requests) {
      return absl::UnavailableError(absl::StrCat("every request failed: ", summary.first_error));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void AddBench(CLI::App* app, int* exit_code) {
  CLI::App* const command =
      app->add_subcommand("bench", "Put load on a cluster and print latencies and throughput");
  auto flags = std::make_shared<BenchFlags>();
  loadgen::RandomWorkloadOptions& workload = flags->scenario.workload;
  workload.seed = 0;
  AddServerFlags(command, &flags->server);
  command->add_option("--url", flags->url, "Another OpenAI-compatible server, http://host:port");
  command->add_flag("--grpc", flags->grpc, "gRPC instead of HTTP")->excludes("--url");
  command->add_option("--model", flags->model, "Model name; unset: the cluster's");
  command
      ->add_option("--max-model-len", flags->max_model_len,
                   "Context in tokens, for --trace and --preset; unset: what the server says")
      ->check(CLI::Range(16, 1 << 30));
  CLI::Option* const preset =
      command->add_option("--preset", flags->preset, "ttft, concurrency or cached")
          ->check(CLI::IsMember({"ttft", "concurrency", "cached"}));
  command
      ->add_option("-c,--concurrency", flags->concurrency,
                   absl::StrFormat("Requests in flight, %d if unset; with --rate or --trace their "
                                   "upper bound, %d if unset",
                                   kClosedLoopConcurrency, kOpenLoopConcurrency))
      ->check(CLI::Range(1, 2048))
      ->excludes(preset);
  command->add_option("--rate", flags->rate, "Open loop: requests per second, Poisson arrivals")
      ->check(CLI::Range(0.001, 1e6))
      ->excludes(preset);
  command
      ->add_option("-n,--requests", workload.num_requests,
                   "Number of requests; presets have fewer, or their own")
      ->check(CLI::Range(1, 10000000))
      ->capture_default_str();
  command->add_option("--prompt-tokens", workload.prompt_tokens, "Length of prompts")
      ->capture_default_str()
      ->excludes(preset);
  command->add_option("--prompt-spread", workload.prompt_tokens_spread,
                      "0.5: lengths uniform within 50 %");
  command->add_option("--output-tokens", workload.output_tokens, "Length of answers (forced)")
      ->capture_default_str();
  command->add_option("--output-spread", workload.output_tokens_spread, "As --prompt-spread");
  command->add_option("--shared-prefix-tokens", workload.shared_prefix_tokens,
                      "First tokens that all prompts share");
  command
      ->add_option("--seed", workload.seed,
                   "Same seed, same requests; 0: from the clock, so that no earlier run has "
                   "filled the prefix caches")
      ->capture_default_str();
  command->add_option("--trace", flags->trace.path, "Replay a trace in Mooncake's format")
      ->excludes(preset)
      ->excludes("--rate");
  command->add_option("--length-scale", flags->trace.length_scale, "Shorten the trace's requests");
  command->add_option("--time-scale", flags->trace.time_scale, "0.5: twice the trace's rate");
  command->add_option("--warm-up", flags->scenario.warm_up_requests, "Requests before each run")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  command->add_option("--slo-ttft-ms", flags->slo.ttft_ms,
                      "Goodput: limit of the time to first token");
  command->add_option("--slo-tpot-ms", flags->slo.tpot_ms,
                      "Goodput: limit of the time per output token");
  command->add_option("--timeout", flags->timeout_seconds, "Seconds for one request")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  command->add_option("--json", flags->json_path, "Also write the figures to a file");
  command->add_option("--plot", flags->plot_path, "Also draw them into an SVG file");
  command->add_flag("-q,--quiet", flags->quiet, "No progress bar");
  command->footer(kExamples);
  command->callback([flags, exit_code] {
    const absl::Status status = Bench(*flags);
    *exit_code = status.ok() ? 0 : Fail(status);
  });
}

}  // namespace sluice::cli
