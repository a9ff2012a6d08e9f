// `sluice up` over stand-ins for the programs: order, readiness, failures, and that nobody is left
// behind.
#include "cli/cluster_launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/machine_share.h"
#include "cli/run_dir.h"
#include "common/clock.h"
#include "common/processors.h"
#include "tests/cli/fake_programs.h"

namespace sluice::cli {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class ClusterLauncherTest : public ::testing::Test {
 protected:
  // A new folder, new stand-ins and an empty log.
  void Prepare(const std::string& behaviour) {
    programs_ = std::make_unique<FakePrograms>(behaviour);
    options_.bin_dir = programs_->dir();
    options_.run_dir = programs_->run_dir();
    options_.model_dir = "/some/model";
    options_.http_port = 0;
    options_.grpc_port = 0;
    options_.kv_cache_per_worker = "64MiB";
    options_.worker_args = {"--dtype", "f32"};
    lock_ = RunDirLock::Take(options_.run_dir).value();
    if (log_ != nullptr) fclose(log_);
    log_ = tmpfile();
    printer_ = std::make_unique<LogPrinter>(fileno(log_), /*colours=*/false, 9);
  }
  ~ClusterLauncherTest() override {
    if (log_ != nullptr) fclose(log_);
  }

  // What was printed so far. Leaves the file's position alone: the launcher appends there.
  std::string Log() const {
    std::string text(1 << 20, '\0');
    const ssize_t got = pread(fileno(log_), text.data(), text.size(), 0);
    text.resize(got > 0 ? static_cast<size_t>(got) : 0);
    return text;
  }

  // Starts over who never becomes ready, and expects the launcher to give up and to say `why`. Its
  // last probe has half a second: when the machine stalls just then, it names another reason.
  void ExpectGivesUp(const std::string& behaviour, const std::string& why) {
    std::string message;
    for (int tries = 0; tries < 3 && !absl::StrContains(message, why); ++tries) {
      Prepare(behaviour);
      options_.ready_timeout = absl::Seconds(3);
      ClusterLauncher launcher(options_, printer_.get());
      const absl::Status started = launcher.Start();
      launcher.Stop();
      ASSERT_EQ(started.code(), absl::StatusCode::kDeadlineExceeded) << started;
      message = std::string(started.message());
      EXPECT_THAT(message, HasSubstr("prefill-0"));
    }
    EXPECT_THAT(message, HasSubstr(why));
  }

  // Serves until that is printed, and asks the launcher to stop then.
  void ServeUntil(const std::string& line, ClusterLauncher* launcher) const {
    std::thread stopper([&] {
      const absl::Time deadline = MonotonicNow() + absl::Seconds(30);
      while (!absl::StrContains(Log(), line) && MonotonicNow() < deadline) {
        absl::SleepFor(absl::Milliseconds(20));
      }
      kill(getpid(), SIGTERM);
    });
    EXPECT_TRUE(launcher->Serve().ok());
    stopper.join();
    EXPECT_THAT(Log(), HasSubstr(line));
  }

  static bool Lives(int pid) { return kill(pid, 0) == 0; }

  std::unique_ptr<FakePrograms> programs_;
  ClusterOptions options_;
  std::unique_ptr<RunDirLock> lock_;
  FILE* log_ = nullptr;
  std::unique_ptr<LogPrinter> printer_;
};

TEST_F(ClusterLauncherTest, StartsServesAndStopsInOrder) {
  Prepare("");
  options_.num_both = 1;
  ClusterLauncher launcher(options_, printer_.get());
  const absl::Status started = launcher.Start();
  ASSERT_TRUE(started.ok()) << started;
  EXPECT_EQ(launcher.info().http_address, "127.0.0.1:4711");
  EXPECT_EQ(launcher.info().grpc_address, "127.0.0.1:4712");

  kill(getpid(), SIGTERM);
  EXPECT_TRUE(launcher.Serve().ok());
  launcher.Stop();
  EXPECT_EQ(programs_->Find("router", "start"), 0);
  for (const char* worker : {"prefill-0", "decode-0", "both-0"}) {
    EXPECT_GT(programs_->Find(worker, "end"), 0) << worker;
    EXPECT_LT(programs_->Find(worker, "end"), programs_->Find("router", "term")) << worker;
  }
  EXPECT_GT(programs_->Find("router", "end"), 0);
  for (const FakePrograms::Event& event : programs_->Events()) EXPECT_FALSE(Lives(event.pid));
  EXPECT_THAT(
      Log(),
      AllOf(HasSubstr("router    | router says hello: --model /some/model"),
            HasSubstr("decode-0  | decode-0 says hello: --model /some/model --role "
                      "decode --worker-id decode-0 --routers 127.0.0.1:4713 "
                      "--admin-port 0 --threads 1 --drain-timeout 25000ms --kv-cache "
                      "64MiB --dtype f32"),
            HasSubstr(absl::StrCat("--kv-cache 64MiB --compute-niceness ",
                                   PrefillNiceness(3, AvailableProcessors()), " --dtype f32")),
            HasSubstr("ready after")));
}

TEST_F(ClusterLauncherTest, ReportsWhoDiesAtStartWithItsLastWords) {
  Prepare("decode-0:die");
  ClusterLauncher launcher(options_, printer_.get());
  const absl::Status started = launcher.Start();
  EXPECT_EQ(started.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(started.message()), AllOf(HasSubstr("decode-0 ended with exit code 3"),
                                                    HasSubstr("cannot find the moon")));
  launcher.Stop();
  for (const FakePrograms::Event& event : programs_->Events()) EXPECT_FALSE(Lives(event.pid));
}

TEST_F(ClusterLauncherTest, GivesUpOnWhoIsNeverReady) {
  ExpectGivesUp("prefill-0:never-ready", "prefill-0 (waits for a blessing)");
}

TEST_F(ClusterLauncherTest, WaitsForWhoStillLoads) {
  Prepare("prefill-0:load-slowly");
  options_.ready_timeout = absl::Seconds(9);  // all of it takes 10 s, each part 2 s
  ClusterLauncher launcher(options_, printer_.get());
  const absl::Status started = launcher.Start();
  EXPECT_TRUE(started.ok()) << started;
  launcher.Stop();
}

TEST_F(ClusterLauncherTest, GivesUpOnWhoLoadsNoFurther) {
  ExpectGivesUp("prefill-0:load-half", "prefill-0 loads [######..........] 40 %");
}

TEST_F(ClusterLauncherTest, NamesAMissingProgram) {
  Prepare("");
  std::filesystem::remove(programs_->dir() + "/sluice-prefill-worker");
  ClusterLauncher launcher(options_, printer_.get());
  const absl::Status started = launcher.Start();
  EXPECT_EQ(started.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(started.message()),
              AllOf(HasSubstr("sluice-prefill-worker"), HasSubstr("No such file")));
  launcher.Stop();
}

TEST_F(ClusterLauncherTest, ASignalWhileStartingCancels) {
  Prepare("prefill-0:never-ready");
  ClusterLauncher launcher(options_, printer_.get());
  kill(getpid(), SIGINT);
  EXPECT_TRUE(absl::IsCancelled(launcher.Start()));
  launcher.Stop();
}

TEST_F(ClusterLauncherTest, KillsWhoDoesNotStop) {
  Prepare("decode-0:ignore-term");
  options_.drain_timeout = absl::Milliseconds(600);
  options_.stop_grace = absl::Milliseconds(400);
  ClusterLauncher launcher(options_, printer_.get());
  ASSERT_TRUE(launcher.Start().ok());
  launcher.Stop();
  // Perhaps together with prefill-0, when the machine stalls while that one drains.
  EXPECT_THAT(Log(), ContainsRegex("killing [^\n]*decode-0"));
  EXPECT_THAT(Log(), HasSubstr("--drain-timeout 600ms"));
  EXPECT_GT(programs_->Find("router", "end"), 0);
  for (const FakePrograms::Event& event : programs_->Events()) EXPECT_FALSE(Lives(event.pid));
}

TEST_F(ClusterLauncherTest, ASecondSignalKillsTheRouterToo) {
  Prepare("router:ignore-term");
  ClusterLauncher launcher(options_, printer_.get());
  ASSERT_TRUE(launcher.Start().ok());
  kill(getpid(), SIGINT);
  kill(getpid(), SIGTERM);
  EXPECT_TRUE(launcher.Serve().ok());
  const absl::Time begin = MonotonicNow();
  launcher.Stop();
  EXPECT_LT(MonotonicNow() - begin, absl::Seconds(8));  // it would get 10 s
  EXPECT_THAT(Log(), HasSubstr("killing router"));
}

TEST_F(ClusterLauncherTest, AWorkerThatEndsIsStartedAgain) {
  Prepare("prefill-0:die-once");
  ClusterLauncher launcher(options_, printer_.get());
  ASSERT_TRUE(launcher.Start().ok());
  programs_->LetDie();
  ServeUntil("is ready again", &launcher);
  EXPECT_THAT(Log(), AllOf(HasSubstr("prefill-0 ended with exit code 7; it is started again in 1s"),
                           HasSubstr("prefill-0 is ready again")));
  launcher.Stop();
  EXPECT_GT(programs_->Find("decode-0", "end"), 0);
  for (const FakePrograms::Event& event : programs_->Events()) EXPECT_FALSE(Lives(event.pid));
}

TEST_F(ClusterLauncherTest, AWorkerThatKeepsEndingIsStartedEverLater) {
  Prepare("prefill-0:die-later");
  ClusterLauncher launcher(options_, printer_.get());
  ASSERT_TRUE(launcher.Start().ok());
  programs_->LetDie();
  ServeUntil("again in 4s", &launcher);
  EXPECT_THAT(Log(),
              AllOf(HasSubstr("again in 1s"), HasSubstr("again in 2s"), HasSubstr("again in 4s")));
  launcher.Stop();
}

TEST_F(ClusterLauncherTest, AWorkerThatWasStoppedStaysDown) {
  Prepare("");
  ClusterLauncher launcher(options_, printer_.get());
  ASSERT_TRUE(launcher.Start().ok());
  for (const FakePrograms::Event& event : programs_->Events()) {
    if (event.name == "prefill-0") kill(event.pid, SIGTERM);
  }
  ServeUntil("the others go on", &launcher);
  EXPECT_THAT(Log(), HasSubstr("prefill-0 ended with exit code 0; the others go on"));
  launcher.Stop();
}

TEST(NextRestartPause, GrowsUntilTheWorkerIsReadyForAWhile) {
  EXPECT_EQ(NextRestartPause(absl::ZeroDuration(), absl::ZeroDuration()), absl::Seconds(1));
  EXPECT_EQ(NextRestartPause(absl::Seconds(4), absl::Seconds(59)), absl::Seconds(8));
  EXPECT_EQ(NextRestartPause(absl::Seconds(16), absl::ZeroDuration()), absl::Seconds(30));
  EXPECT_EQ(NextRestartPause(absl::Seconds(30), absl::ZeroDuration()), absl::Seconds(30));
  EXPECT_EQ(NextRestartPause(absl::Seconds(30), absl::Seconds(60)), absl::Seconds(1));
}

TEST_F(ClusterLauncherTest, TheRoutersEndIsTheEnd) {
  Prepare("router:die-later");
  ClusterLauncher launcher(options_, printer_.get());
  ASSERT_TRUE(launcher.Start().ok());
  programs_->LetDie();
  const absl::Status end = launcher.Serve();
  EXPECT_EQ(end.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(end.message()), HasSubstr("router ended with exit code 7"));
  launcher.Stop();
}

TEST_F(ClusterLauncherTest, ChildrenDieWithTheLauncher) {
  Prepare("");
  const pid_t launcher_pid = fork();
  if (launcher_pid == 0) {
    ClusterLauncher launcher(options_, printer_.get());
    if (launcher.Start().ok()) (void)launcher.Serve();
    _exit(1);
  }
  const absl::Time deadline = MonotonicNow() + absl::Seconds(30);
  while (programs_->Events().size() < 3 && MonotonicNow() < deadline) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  ASSERT_EQ(programs_->Events().size(), 3u);
  kill(launcher_pid, SIGKILL);
  waitpid(launcher_pid, nullptr, 0);
  for (const FakePrograms::Event& event : programs_->Events()) {
    while (Lives(event.pid) && MonotonicNow() < deadline) absl::SleepFor(absl::Milliseconds(20));
    EXPECT_FALSE(Lives(event.pid)) << event.name;
  }
}

}  // namespace
}  // namespace sluice::cli
