#include "tests/sim/seed_runner.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <numeric>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/log.h"

namespace sluice::testing {
namespace {

// A seed takes milliseconds; one that takes this long hangs, whatever else the machine does.
constexpr unsigned kMaxSecondsPerSeed = 120;

unsigned long long Printable(uint64_t value) { return value; }

Selection WholeScript(const Simulation& simulation) {
  Selection all(simulation.script().size());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// One value that a child process shows its parent.
class SharedSeed {
 public:
  SharedSeed() {
    void* page =
        mmap(nullptr, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
      std::perror("mmap");
      std::exit(2);
    }
    value_ = new (page) uint64_t(0);
  }
  ~SharedSeed() { munmap(value_, sizeof(uint64_t)); }
  volatile uint64_t& value() { return *value_; }

 private:
  uint64_t* value_;
};

struct ChildResult {
  bool ok = false;
  std::string output;  // of its stdout, and how it ended if by a signal
};

// Runs `body` in a child process. With `capture` its stdout comes back, and its stderr is dropped.
ChildResult RunChild(bool capture, const std::function<void()>& body) {
  int ends[2] = {-1, -1};
  std::fflush(stdout);
  if (capture && pipe(ends) != 0) {
    std::perror("pipe");
    std::exit(2);
  }
  const pid_t child = fork();
  if (child < 0) {
    std::perror("fork");
    std::exit(2);
  }
  if (child == 0) {
    if (capture) {
      dup2(ends[1], STDOUT_FILENO);
      if (std::freopen("/dev/null", "w", stderr) == nullptr) std::_Exit(2);
      close(ends[0]);
      close(ends[1]);
    }
    body();
    std::fflush(stdout);
    std::_Exit(0);
  }
  ChildResult result;
  if (capture) {
    close(ends[1]);
    char buffer[4096];
    for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) {
      result.output.append(buffer, static_cast<size_t>(n));
    }
    close(ends[0]);
  }
  int status = 0;
  waitpid(child, &status, 0);
  result.ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (WIFSIGNALED(status)) {
    absl::StrAppend(&result.output, WTERMSIG(status) == SIGALRM ? "it hangs" : "it crashes",
                    " (signal ", WTERMSIG(status), ")");
  }
  return result;
}

void Quieten() {
  LogOptions options;
  options.level = LogLevel::kError;
  InitLogging(options);
}

void RunSeeds(const SimulationProgram& program, uint64_t first, uint64_t count,
              SharedSeed* current) {
  Quieten();
  for (uint64_t seed = first; seed < first + count; ++seed) {
    current->value() = seed;
    alarm(kMaxSecondsPerSeed);
    const std::unique_ptr<Simulation> simulation = program.make(seed, /*trace=*/false);
    simulation->Run(WholeScript(*simulation));
  }
  alarm(0);
}

void Report(const SimulationProgram& program, const FailedSeed& failed) {
  std::printf("FAILED seed %llu: %s\nreplay: %s --seed %llu\n", Printable(failed.seed),
              failed.how.c_str(), program.name.c_str(), Printable(failed.seed));
  std::fflush(stdout);
  const MinimizedSeed small = MinimizeSeed(program, failed.seed);
  std::printf("minimised to %zu of %d entries: %s\n", small.kept.size(), small.num_entries,
              small.how.c_str());
  for (const std::string& text : small.script) std::printf("  %s\n", text.c_str());
  std::printf("replay: %s --seed %llu --keep %s\n", program.name.c_str(), Printable(failed.seed),
              small.kept.empty() ? "none" : absl::StrJoin(small.kept, ",").c_str());
}

bool ParseSelection(const std::string& text, Selection* selection) {
  selection->clear();
  if (text == "none") return true;
  for (absl::string_view number : absl::StrSplit(text, ',')) {
    if (!absl::SimpleAtoi(number, &selection->emplace_back())) return false;
  }
  return true;
}

}  // namespace

void FailSimulation(absl::Duration at, const std::string& what) {
  std::printf("at %.6f s: %s\n", absl::ToDoubleSeconds(at), what.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

std::optional<FailedSeed> FindFailedSeed(const SimulationProgram& program, uint64_t first,
                                         uint64_t count) {
  SharedSeed current;
  const ChildResult result =
      RunChild(/*capture=*/true, [&] { RunSeeds(program, first, count, &current); });
  if (result.ok) return std::nullopt;
  return FailedSeed{current.value(), std::string(absl::StripSuffix(result.output, "\n"))};
}

bool FailsWith(const SimulationProgram& program, uint64_t seed, const Selection& selection,
               std::string* how) {
  const ChildResult result = RunChild(/*capture=*/true, [&] {
    Quieten();
    alarm(kMaxSecondsPerSeed);
    program.make(seed, /*trace=*/false)->Run(selection);
  });
  if (how != nullptr) *how = std::string(absl::StripSuffix(result.output, "\n"));
  return !result.ok;
}

MinimizedSeed MinimizeSeed(const SimulationProgram& program, uint64_t seed) {
  const std::unique_ptr<Simulation> simulation = program.make(seed, /*trace=*/false);
  MinimizedSeed minimized;
  minimized.num_entries = static_cast<int>(simulation->script().size());
  minimized.kept = Minimize(WholeScript(*simulation), [&](const Selection& selection) {
    return FailsWith(program, seed, selection, nullptr);
  });
  FailsWith(program, seed, minimized.kept, &minimized.how);
  for (int entry : minimized.kept) {
    minimized.script.push_back(simulation->script()[static_cast<size_t>(entry)].text);
  }
  return minimized;
}

int RunSimulationProgram(const SimulationProgram& program, int argc, char** argv) {
  uint64_t first = 1, count = program.default_seeds;
  std::optional<uint64_t> one_seed;
  std::optional<Selection> selection;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i], text = i + 1 < argc ? argv[i + 1] : "";
    uint64_t value = 0;
    const bool is_number = absl::SimpleAtoi(text, &value);
    if (flag == "--keep" && ParseSelection(text, &selection.emplace())) continue;
    if (flag == "--seed" && is_number) {
      one_seed = value;
    } else if (flag == "--seeds" && is_number) {
      count = value;
    } else if (flag == "--first" && is_number) {
      first = value;
    } else {
      std::printf("usage: %s [--seeds N] [--first N] | --seed N [--keep 1,4,7]\n",
                  program.name.c_str());
      return 2;
    }
  }
  if (one_seed.has_value()) {  // in this process, where a debugger sees it
    const std::unique_ptr<Simulation> simulation = program.make(*one_seed, /*trace=*/true);
    const Selection kept = selection.value_or(WholeScript(*simulation));
    for (int entry : kept) {
      if (entry < 0 || entry >= static_cast<int>(simulation->script().size())) {
        std::printf("the script has no entry %d\n", entry);
        return 2;
      }
      std::printf("%3d  %s\n", entry,
                  simulation->script()[static_cast<size_t>(entry)].text.c_str());
    }
    simulation->Run(kept);
    std::printf("seed %llu passed\n", Printable(*one_seed));
    return 0;
  }

  SharedSeed current;
  bool convincing = true;
  const ChildResult result = RunChild(/*capture=*/true, [&] {
    RunSeeds(program, first, count, &current);
    current.value() = first + count;
    std::printf("%llu seeds passed: ", Printable(count));
    convincing = program.summarize();
    std::fflush(stdout);
    if (!convincing) std::_Exit(1);
  });
  if (result.ok || current.value() == first + count) {
    std::printf("%s", result.output.c_str());
    if (!result.ok) std::printf("that is too little to prove anything\n");
    return result.ok ? 0 : 1;
  }
  Report(program, {current.value(), std::string(absl::StripSuffix(result.output, "\n"))});
  return 1;
}

}  // namespace sluice::testing
