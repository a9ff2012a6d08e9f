// The program itself: usage errors, exit codes, JSON output, and the engine commands against golden
// runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "tests/cli/fake_programs.h"

namespace sluice::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kTiny = std::string(SLUICE_SOURCE_DIR) + "/models/deepseek-tiny";

struct RunResult {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// `arguments` as in a shell. Bounded by timeout(1).
RunResult Sluice(const std::string& arguments) {
  std::string error_path = (std::filesystem::temp_directory_path() / "sluice-err-XXXXXX").string();
  close(mkstemp(error_path.data()));
  const std::string command = absl::StrCat("timeout 100 ", SLUICE_PROGRAM, " ", arguments, " 2>",
                                           error_path, " </dev/null");
  RunResult run;
  FILE* const pipe = popen(command.c_str(), "r");
  char buffer[4096];
  while (const size_t got = fread(buffer, 1, sizeof(buffer), pipe)) run.out.append(buffer, got);
  run.exit_code = WEXITSTATUS(pclose(pipe));
  std::ifstream file(error_path);
  run.err.assign(std::istreambuf_iterator<char>(file), {});
  std::filesystem::remove(error_path);
  return run;
}

TEST(SluiceProgram, UsageErrorsExitWith2) {
  for (const char* arguments :
       {"", "dance", "up --prefill many", "up --http-port 70000", "inspect", "logits /x",
        "chat --temperature hot", "status --interval 0", "make-checkpoint --preset v2-lite",
        "make-checkpoint --preset v9 --out /x", "make-checkpoint --out /x",
        "chat --think --no-think hello", "status --server http://127.0.0.1:8000"}) {
    const RunResult run = Sluice(arguments);
    EXPECT_EQ(run.exit_code, 2) << arguments << run.err;
    EXPECT_NE(run.err, "") << arguments;
  }
}

TEST(SluiceProgram, AManifestIsWrittenAndHeldAgainstTheWeights) {
  namespace fs = std::filesystem;
  const fs::path model = fs::temp_directory_path() / absl::StrCat("sluice-manifest-", getpid());
  fs::remove_all(model);
  fs::copy(std::string(SLUICE_SOURCE_DIR) + "/tests/golden/data/dev-v3", model);
  const std::string generate =
      absl::StrCat("generate ", model.string(), " --tokens 1,2,3 --max-tokens 2 --threads 1");
  EXPECT_EQ(Sluice(generate).exit_code, 0) << "without a manifest";
  const RunResult written = Sluice(absl::StrCat("inspect ", model.string(), " --write-manifest"));
  EXPECT_EQ(written.exit_code, 0) << written.err;
  EXPECT_THAT(written.out, AllOf(HasSubstr("3 shards"), HasSubstr("golden answer of 16 tokens")));
  for (const char* flags : {" --dtype f32", " --dtype bf16", " --dtype bf16 --isa portable"}) {
    const RunResult run = Sluice(generate + flags);
    EXPECT_EQ(run.exit_code, 0) << flags << run.err;
  }

  const fs::path shard = model / "model-00003-of-000003.safetensors";
  fs::permissions(shard, fs::perms::owner_all);
  std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-1, std::ios::end);
  const char last = static_cast<char>(file.get() ^ 1);
  file.seekp(-1, std::ios::end);
  file.put(last);
  file.close();
  const RunResult refused = Sluice(generate);
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr(shard.filename().string()), HasSubstr("tensor '")));
  fs::remove_all(model);
}

TEST(SluiceProgram, AMadeCheckpointRuns) {
  namespace fs = std::filesystem;
  const fs::path model = fs::temp_directory_path() / absl::StrCat("sluice-made-", getpid());
  fs::remove_all(model);
  const std::string make =
      absl::StrCat("make-checkpoint --config ", kTiny, "/config.json", " --tokenizer ", kTiny,
                   " --layers 2 --out ", model.string());
  const RunResult made = Sluice(make);
  EXPECT_EQ(made.exit_code, 0) << made.err;
  const RunResult run =
      Sluice(absl::StrCat("generate ", model.string(), " --chat hello --max-tokens 3 --threads 1"));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(Sluice(make).err, HasSubstr("not an empty folder"));
  EXPECT_THAT(Sluice(absl::StrCat("make-checkpoint --out ", model.string(), "2")).err,
              HasSubstr("--preset or --config"));
  fs::remove_all(model);
}

TEST(SluiceProgram, EveryCommandHasHelpWithoutFailing) {
  for (const char* command :
       {"", "up", "down", "chat", "status", "inspect", "generate", "logits", "make-checkpoint"}) {
    const RunResult run = Sluice(absl::StrCat(command, " --help"));
    EXPECT_EQ(run.exit_code, 0) << command;
    EXPECT_THAT(run.out, HasSubstr("sluice")) << command;
  }
  EXPECT_THAT(Sluice("--version").out, HasSubstr("sluice 0."));
}

TEST(SluiceProgram, FailuresSayWhatToDo) {
  EXPECT_THAT(Sluice("up --prefill 0").err, HasSubstr("--decode 1"));
  EXPECT_THAT(Sluice("up --kv-cache much").err, HasSubstr("--kv-cache: 'much'"));
  EXPECT_THAT(Sluice("up --model /nonexistent").err, HasSubstr("no config.json"));
  EXPECT_THAT(Sluice("chat --server 127.0.0.1:1 hello").err, HasSubstr("`sluice up`"));
  EXPECT_THAT(Sluice("status --server 127.0.0.1:1").err, HasSubstr("`sluice up`"));
  EXPECT_THAT(Sluice("down --run-dir /nonexistent").err, HasSubstr("no cluster runs"));
  EXPECT_THAT(Sluice("status --run-dir /nonexistent").err, HasSubstr("no cluster runs"));
  EXPECT_THAT(Sluice("make-checkpoint --out /tmp/sluice-never --config " + kTiny).err,
              HasSubstr("Is a directory"));
  EXPECT_THAT(Sluice("bench --url http://127.0.0.1:1 --model m --json /nonexistent/x").err,
              HasSubstr("cannot write /nonexistent/x"));
  EXPECT_THAT(Sluice("bench --url http://127.0.0.1:1 --model m -q").err,
              HasSubstr("no request before the run succeeded"));
  EXPECT_EQ(Sluice("bench --preset ttft --prompt-tokens 5").exit_code, 2);
  // The advice to raise --concurrency can be followed.
  EXPECT_EQ(
      Sluice("bench --url http://127.0.0.1:1 --model m -q --rate 5 --concurrency 9").exit_code, 1);
  EXPECT_THAT(Sluice("inspect /nonexistent").err, HasSubstr("/nonexistent/config.json"));
  EXPECT_THAT(Sluice("generate " + kTiny).err, HasSubstr("exactly one of"));
  EXPECT_THAT(Sluice("logits " + kTiny + " --tokens 0,4096").err, HasSubstr("'4096'"));
  EXPECT_EQ(Sluice("inspect /nonexistent").exit_code, 1);
}

TEST(SluiceProgram, ATraceIsFittedToTheContext) {
  const std::string path =
      (std::filesystem::temp_directory_path() / absl::StrCat("sluice-trace-", getpid())).string();
  std::ofstream(path) << R"({"timestamp":0,"input_length":700,"output_length":100})"
                      << "\n"
                      << R"({"timestamp":0,"input_length":701,"output_length":1})"
                      << "\n"
                      << R"({"timestamp":0,"input_length":4000,"output_length":1})"
                      << "\n";
  const std::string bench =
      absl::StrCat("bench --url http://127.0.0.1:1 --model m -q --warm-up 0 --trace ", path);
  EXPECT_THAT(Sluice(bench + " --max-model-len 800").err,
              AllOf(HasSubstr("2 requests of the trace were left out"),
                    HasSubstr("than 700 tokens"), HasSubstr("1 of 1 answers were cut to 99 tokens"),
                    testing::Not(HasSubstr("does not say"))));
  EXPECT_THAT(Sluice(bench).err,
              AllOf(HasSubstr("does not say how long"), HasSubstr("4096 tokens are assumed"),
                    HasSubstr("1 requests of the trace were left out")));
  std::filesystem::remove(path);
}

TEST(SluiceProgram, InspectsAModel) {
  const RunResult run = Sluice(absl::StrCat("inspect --json --tensors ", kTiny));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json json = nlohmann::json::parse(run.out);
  EXPECT_EQ(json.at("architecture"), "DeepseekV3ForCausalLM");
  EXPECT_EQ(json.at("dimensions").at("kv_lora_rank"), 512);
  EXPECT_EQ(json.at("kv_bytes_per_token").at("bf16"), 6 * (512 + 64) * 2);
  EXPECT_EQ(json.at("tokenizer").at("chat_format"), "deepseek-tiny");
  EXPECT_EQ(json.at("weights").at("files"), 1);
  // The file also holds the MTP layer and the gates' correction biases, which are not parameters.
  int64_t elements = 0;
  int64_t mtp_elements = 0;
  for (const nlohmann::json& tensor : json.at("weights").at("tensors")) {
    const std::string name = tensor.at("name");
    if (absl::EndsWith(name, "e_score_correction_bias")) continue;
    int64_t count = 1;
    for (const int64_t size : tensor.at("shape")) count *= size;
    elements += count;
    if (absl::StartsWith(name, "model.layers.6.")) {
      mtp_elements += count;
    }
  }
  EXPECT_EQ(elements - mtp_elements, json.at("parameters").get<int64_t>());
  EXPECT_THAT(Sluice("inspect --tensors " + kTiny).out,
              AllOf(HasSubstr("12,299,072"), HasSubstr("model.embed_tokens.weight")));
}

TEST(SluiceProgram, UpDetachedAndDown) {
  const FakePrograms programs;
  const std::string where =
      absl::StrCat(" --run-dir ", programs.run_dir(), " --bin-dir ", programs.dir());
  const RunResult up = Sluice(absl::StrCat("up --detach --http-port 0 --model ", kTiny, where));
  ASSERT_EQ(up.exit_code, 0) << up.err;
  EXPECT_THAT(up.out, AllOf(HasSubstr("127.0.0.1:4711"), HasSubstr("sluice chat --run-dir")));
  const RunResult again = Sluice(absl::StrCat("up --http-port 0 --model ", kTiny, where));
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_THAT(again.err, HasSubstr("already runs"));
  const RunResult down = Sluice("down --run-dir " + programs.run_dir());
  EXPECT_EQ(down.exit_code, 0) << down.err;
  EXPECT_GT(programs.Find("router", "end"), 0);
  EXPECT_EQ(Sluice("down --run-dir " + programs.run_dir()).exit_code, 1);
}

TEST(SluiceProgram, UpDetachedSaysWhyItFailed) {
  const FakePrograms programs("router:die");
  const RunResult up = Sluice(absl::StrCat("up --detach --model ", kTiny, " --run-dir ",
                                           programs.run_dir(), " --bin-dir ", programs.dir()));
  EXPECT_EQ(up.exit_code, 1);
  EXPECT_THAT(up.err,
              AllOf(HasSubstr("router ended with exit code 3"), HasSubstr("cannot find the moon")));
}

TEST(SluiceProgram, UpDetachedLogsWhyItEnded) {
  const FakePrograms programs("router:die-later");
  const std::string where = " --run-dir " + programs.run_dir();
  const RunResult up =
      Sluice(absl::StrCat("up --detach --model ", kTiny, where, " --bin-dir ", programs.dir()));
  ASSERT_EQ(up.exit_code, 0) << up.err;
  EXPECT_THAT(up.out, HasSubstr("`sluice down --run-dir "));
  programs.LetDie();
  const absl::Time give_up_at = MonotonicNow() + absl::Seconds(20);
  while (Sluice("status" + where).err.find("no cluster runs") == std::string::npos &&
         MonotonicNow() < give_up_at) {
    absl::SleepFor(absl::Milliseconds(100));
  }
  std::ifstream file(programs.run_dir() + "/sluice.log");
  const std::string log((std::istreambuf_iterator<char>(file)), {});
  EXPECT_THAT(log, HasSubstr("router ended with exit code 7"));
}

class EngineCommands : public ::testing::Test {
 protected:
  static nlohmann::json Golden(const std::string& name) {
    std::ifstream file(std::string(SLUICE_SOURCE_DIR) + "/tests/golden/data/deepseek-tiny.json");
    const nlohmann::json golden = nlohmann::json::parse(file);
    for (const nlohmann::json& prompt : golden.at("prompts")) {
      if (prompt.at("name") == name) return prompt;
    }
    throw std::runtime_error("no golden prompt " + name);
  }
  static std::string Join(const nlohmann::json& ids) {
    return absl::StrJoin(ids.get<std::vector<int>>(), ",");
  }
};

TEST_F(EngineCommands, LogitsAreTheGoldenOnes) {
  const nlohmann::json golden = Golden("hello");
  const RunResult run = Sluice(
      absl::StrCat("logits ", kTiny, " --dtype f32 --all --tokens ", Join(golden.at("ids"))));
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json positions = nlohmann::json::parse(run.out).at("positions");
  ASSERT_EQ(positions.size(), golden.at("ids").size());
  for (const nlohmann::json& expected : golden.at("positions")) {
    const nlohmann::json& position = positions.at(expected.at("pos").get<size_t>());
    EXPECT_NEAR(position.at("logsumexp").get<double>(), expected.at("logsumexp").get<double>(),
                2e-4);
    for (const nlohmann::json& entry : expected.at("top")) {
      EXPECT_NEAR(position.at("logits").at(entry.at(0).get<size_t>()).get<double>(),
                  entry.at(1).get<double>(), 2e-4);
    }
  }
  const RunResult top = Sluice(
      absl::StrCat("logits ", kTiny, " --dtype f32 --top 3 --tokens ", Join(golden.at("ids"))));
  const nlohmann::json last = nlohmann::json::parse(top.out).at("positions").back();
  const nlohmann::json& expected = golden.at("positions").back();
  ASSERT_EQ(last.at("top").size(), 3u);
  EXPECT_EQ(last.at("top").at(0).at(0), expected.at("top").at(0).at(0));
  EXPECT_NEAR(last.at("top").at(0).at(1).get<double>(),
              expected.at("top").at(0).at(1).get<double>() - expected.at("logsumexp").get<double>(),
              4e-4);
}

TEST_F(EngineCommands, GeneratesTheGoldenAnswer) {
  const nlohmann::json golden = Golden("hello");
  const RunResult by_ids = Sluice(absl::StrCat(
      "generate ", kTiny, " --dtype f32 -n 64 --logprobs 1 --tokens ", Join(golden.at("ids"))));
  ASSERT_EQ(by_ids.exit_code, 0) << by_ids.err;
  const nlohmann::json json = nlohmann::json::parse(by_ids.out);
  EXPECT_EQ(json.at("ids"), golden.at("greedy"));
  EXPECT_EQ(json.at("finish_reason"), "stop");
  EXPECT_EQ(json.at("logprobs").size(), json.at("ids").size());

  const RunResult by_chat =
      Sluice(absl::StrCat("generate ", kTiny, " --dtype f32 -n 64 --chat 'Hello!'"));
  const nlohmann::json chat = nlohmann::json::parse(by_chat.out);
  EXPECT_EQ(chat.at("prompt_ids"), golden.at("ids"));
  EXPECT_EQ(chat.at("ids"), golden.at("greedy"));
  EXPECT_EQ(chat.at("text"), json.at("text"));
}

}  // namespace
}  // namespace sluice::cli
