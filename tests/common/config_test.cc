#include "common/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/version.h"

namespace sluice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct RouterLikeConfig {
  std::string host = "0.0.0.0";
  int http_port = 8000;
  bool json_logs = false;
  absl::Duration drain_timeout = absl::Seconds(30);
  ByteSize max_body{8u << 20};
  std::vector<std::string> workers;
  double temperature = 1;
  int64_t max_num_seqs = 64;
  std::string policy = "prefix";
  std::string model_dir;
};

class ConfigTest : public ::testing::Test {
 protected:
  ConfigTest() : schema_("sluice-router", "A front.", "sluice-router --http-port 8001") {
    schema_.Add("host", &config_.host, "Address to listen on.");
    schema_.Add("http_port", &config_.http_port, "Port of the HTTP server.", 1, 65535);
    schema_.Add("json_logs", &config_.json_logs, "One JSON object a line.");
    schema_.Add("drain_timeout", &config_.drain_timeout, "How long running answers may finish.");
    schema_.Add("max_body", &config_.max_body, "Largest request body.");
    schema_.Add("workers", &config_.workers, "Addresses.");
    schema_.Add("sampling.temperature", &config_.temperature, "Default temperature.", 0, 2);
    schema_.Add("scheduler.max_num_seqs", &config_.max_num_seqs, "Sequences at once.", int64_t{1},
                int64_t{4096});
    schema_.AddChoice("policy", &config_.policy, {"prefix", "load"}, "How to route.");
    schema_.AddPositional("model_dir", &config_.model_dir, "Folder of the model.");
  }
  ~ConfigTest() override {
    for (const std::string& path : files_) unlink(path.c_str());
  }

  std::string File(const std::string& text) {
    char path[] = "/tmp/sluice-config-XXXXXX";
    const int fd = mkstemp(path);
    EXPECT_GE(fd, 0);
    close(fd);
    std::ofstream(path) << text;
    files_.push_back(path);
    return path;
  }

  absl::Status Load(const std::vector<std::string>& args,
                    const std::map<std::string, std::string>& environment = {}) {
    return schema_.LoadFrom(args, environment).status();
  }
  absl::Status LoadYaml(const std::string& text) { return Load({"--config", File(text)}); }

  // The load is refused and the message holds `text`.
  void ExpectRefused(const absl::Status& status, const std::string& text) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }

  RouterLikeConfig config_;
  ConfigSchema schema_;
  std::vector<std::string> files_;
};

TEST_F(ConfigTest, DefaultsStandWhenNothingIsGiven) {
  ASSERT_TRUE(Load({}).ok());
  EXPECT_EQ(config_.http_port, 8000);
  EXPECT_EQ(config_.drain_timeout, absl::Seconds(30));
  EXPECT_EQ(config_.model_dir, "");
}

TEST_F(ConfigTest, FileIsOverriddenByEnvironmentAndEnvironmentByFlags) {
  const std::string file = File("http_port: 1\nhost: from-file\npolicy: load\n");
  ASSERT_TRUE(Load({"--config", file, "--http-port", "3"},
                   {{"SLUICE_HTTP_PORT", "2"}, {"SLUICE_HOST", "from-env"}})
                  .ok());
  EXPECT_EQ(config_.http_port, 3);
  EXPECT_EQ(config_.host, "from-env");
  EXPECT_EQ(config_.policy, "load");
}

TEST_F(ConfigTest, FilePathFromEnvironmentUnlessAFlagNamesAnother) {
  const std::string one = File("http_port: 1\n");
  const std::string two = File("http_port: 2\n");
  ASSERT_TRUE(Load({}, {{"SLUICE_CONFIG", one}}).ok());
  EXPECT_EQ(config_.http_port, 1);
  ASSERT_TRUE(Load({absl::StrCat("--config=", two)}, {{"SLUICE_CONFIG", one}}).ok());
  EXPECT_EQ(config_.http_port, 2);
}

TEST_F(ConfigTest, ReadsEveryTypeFromYaml) {
  ASSERT_TRUE(LoadYaml("host: \"::1\"\n"
                       "json_logs: on\n"
                       "drain_timeout: 1m30s\n"
                       "max_body: 2GiB\n"
                       "workers: [a:1, 'b:2']\n"
                       "sampling: {temperature: 0.25}\n"
                       "scheduler:\n"
                       "  max_num_seqs: 8\n")
                  .ok());
  EXPECT_EQ(config_.host, "::1");
  EXPECT_TRUE(config_.json_logs);
  EXPECT_EQ(config_.drain_timeout, absl::Seconds(90));
  EXPECT_EQ(config_.max_body.bytes, uint64_t{2} << 30);
  EXPECT_THAT(config_.workers, ElementsAre("a:1", "b:2"));
  EXPECT_EQ(config_.temperature, 0.25);
  EXPECT_EQ(config_.max_num_seqs, 8);
}

TEST_F(ConfigTest, NestedKeysHaveDottedFlagsAndFlatVariables) {
  ASSERT_TRUE(
      Load({"--scheduler.max-num-seqs", "9"}, {{"SLUICE_SAMPLING_TEMPERATURE", "0.5"}}).ok());
  EXPECT_EQ(config_.max_num_seqs, 9);
  EXPECT_EQ(config_.temperature, 0.5);
  ASSERT_TRUE(LoadYaml("scheduler.max_num_seqs: 10\n").ok());
  EXPECT_EQ(config_.max_num_seqs, 10);
}

TEST_F(ConfigTest, FlagSpellings) {
  ASSERT_TRUE(Load({"--http_port=81", "--json-logs", "--workers=a, b,", "models/tiny"}).ok());
  EXPECT_EQ(config_.http_port, 81);
  EXPECT_TRUE(config_.json_logs);
  EXPECT_THAT(config_.workers, ElementsAre("a", "b"));
  EXPECT_EQ(config_.model_dir, "models/tiny");
  ASSERT_TRUE(Load({"--no-json-logs", "--workers=", "--host", "-"}).ok());
  EXPECT_FALSE(config_.json_logs);
  EXPECT_THAT(config_.workers, IsEmpty());
  EXPECT_EQ(config_.host, "-");
  ASSERT_TRUE(Load({"--json-logs=true", "--", "--odd-folder"}).ok());
  EXPECT_TRUE(config_.json_logs);
  EXPECT_EQ(config_.model_dir, "--odd-folder");
}

TEST_F(ConfigTest, TheLastOfARepeatedFlagWins) {
  ASSERT_TRUE(Load({"--http-port", "1", "--http-port", "2"}).ok());
  EXPECT_EQ(config_.http_port, 2);
}

TEST_F(ConfigTest, UnknownKeysNameTheNearest) {
  ExpectRefused(Load({"--htp-port", "1"}), "'--htp-port'; the nearest known key is '--http-port'");
  ExpectRefused(Load({"--no-host"}), "unknown key '--no-host'");
  ExpectRefused(Load({"-p", "1"}), "unknown key '-p'");
  ExpectRefused(Load({}, {{"SLUICE_HTTP_PROT", "1"}}), "nearest known key is 'SLUICE_HTTP_PORT'");
  ExpectRefused(LoadYaml("host: a\nhttp-port: 1\n"),
                ":2: unknown key 'http-port'; the nearest "
                "known key is 'http_port'");
  ExpectRefused(LoadYaml("scheduler:\n  max_num_seq: 1\n"),
                ":2: unknown key 'scheduler.max_num_seq'; the nearest known key is "
                "'scheduler.max_num_seqs'");
  ExpectRefused(LoadYaml("shceduler:\n  max_num_seqs: 1\n"), "unknown key 'shceduler'");
}

TEST_F(ConfigTest, ValuesOutOfRangeOrOfAWrongTypeNameKeyAndSource) {
  ExpectRefused(Load({"--http-port", "0"}), "flag --http-port: key 'http_port': 0 is out of range");
  ExpectRefused(Load({"--http-port", "65536"}), "from 1 to 65535");
  ExpectRefused(Load({"--http-port", "99999999999999"}), "integer");
  ExpectRefused(Load({"--http-port", "80.5"}), "integer");
  ExpectRefused(Load({"--http-port="}), "integer");
  ExpectRefused(Load({}, {{"SLUICE_JSON_LOGS", "perhaps"}}),
                "environment SLUICE_JSON_LOGS: key 'json_logs': 'perhaps' is not true or false");
  ExpectRefused(LoadYaml("\ndrain_timeout: 5\n"), ":2: key 'drain_timeout': '5' is not a duration");
  ExpectRefused(LoadYaml("drain_timeout: -5s\n"), "duration");
  ExpectRefused(LoadYaml("drain_timeout: inf\n"), "duration");
  ExpectRefused(LoadYaml("sampling: {temperature: .nan}\n"), "number");
  ExpectRefused(Load({"--sampling.temperature", "nan"}), "number");
  ExpectRefused(Load({"--sampling.temperature", "inf"}), "out of range");
  ExpectRefused(Load({"--policy", "random"}), "'random' is not one of prefix|load");
  ExpectRefused(Load({"--max-body", "8MB"}), "byte size");
}

TEST_F(ConfigTest, ShapesOfYamlThatCannotBeMeantAreRefused) {
  ExpectRefused(LoadYaml("http_port: 1\nhttp_port: 2\n"), ":2: key 'http_port' is given twice");
  ExpectRefused(LoadYaml("scheduler: {max_num_seqs: 1}\nscheduler.max_num_seqs: 2\n"),
                "'scheduler.max_num_seqs' is given twice");
  ExpectRefused(LoadYaml("scheduler: {max_num_seqs: 1}\nscheduler: {max_num_seqs: 2}\n"),
                "'scheduler.max_num_seqs' is given twice");
  ExpectRefused(LoadYaml("http_port:\n"), "key 'http_port' has no value");
  ExpectRefused(LoadYaml("http_port: [1]\n"), "must be a single value");
  ExpectRefused(LoadYaml("workers: [[a]]\n"), "list items");
  ExpectRefused(LoadYaml("workers: ['a,b']\n"), "list items");
  ExpectRefused(LoadYaml("scheduler: 5\n"), "'scheduler' must be a mapping");
  ExpectRefused(LoadYaml("- a\n- b\n"), "must be a mapping");
  ExpectRefused(LoadYaml("? [a]\n: b\n"), "plain name");
  ExpectRefused(LoadYaml("host: a\n---\nhost: b\n"), "more than one YAML document");
  ExpectRefused(LoadYaml("host: [a\n"), "not valid YAML");
  ExpectRefused(LoadYaml(std::string((1 << 20) + 1, '#')), "larger than");
  EXPECT_TRUE(LoadYaml("").ok());
  EXPECT_TRUE(LoadYaml("# nothing but a comment\n").ok());
}

TEST_F(ConfigTest, MissingFilesAndValuesAreNamed) {
  const absl::Status missing = Load({"--config", "/nonexistent/sluice.yaml"});
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/nonexistent/sluice.yaml"));
  ExpectRefused(Load({"--config", "/tmp"}), "/tmp");
  ExpectRefused(Load({"--http-port"}), "flag --http-port needs a value");
  ExpectRefused(Load({"--http-port", "--json-logs"}), "flag --http-port needs a value");
  ExpectRefused(Load({"one", "two"}), "argument 'two' is not expected");
}

TEST_F(ConfigTest, KubernetesServiceVariablesArePassedOver) {
  EXPECT_TRUE(Load({}, {{"SLUICE_ROUTER_SERVICE_HOST", "10.0.0.1"},
                        {"SLUICE_ROUTER_SERVICE_PORT", "80"},
                        {"SLUICE_ROUTER_SERVICE_PORT_HTTP", "80"},
                        {"SLUICE_ROUTER_PORT", "tcp://10.0.0.1:80"},
                        {"SLUICE_ROUTER_PORT_80_TCP", "tcp://10.0.0.1:80"},
                        {"SLUICE_ROUTER_PORT_80_TCP_ADDR", "10.0.0.1"},
                        {"SLUICE_HTTP_PORT", "tcp://10.0.0.1:80"}})
                  .ok());
  EXPECT_EQ(config_.http_port, 8000);
}

TEST_F(ConfigTest, PrintShowsValuesWithSourcesAndReadsBackTheSame) {
  const std::string file = File("drain_timeout: 250ms\nhost: 'say \"hi\" # not a comment'\n");
  const absl::StatusOr<ConfigAction> action =
      schema_.LoadFrom({"--config", file, "--print-config", "--max-body=3MiB",
                        "--sampling.temperature=0.1", "--workers=a,b"},
                       {{"SLUICE_SCHEDULER_MAX_NUM_SEQS", "7"}});
  ASSERT_TRUE(action.ok()) << action.status();
  ASSERT_TRUE(action->exit);
  EXPECT_THAT(action->text,
              HasSubstr(absl::StrCat("drain_timeout: 250ms  # duration; ", file, ":1")));
  EXPECT_THAT(action->text, HasSubstr("max_body: 3MiB  # bytes; flag --max-body"));
  EXPECT_THAT(action->text,
              HasSubstr("scheduler:\n  # Sequences at once.\n  max_num_seqs: 7  # int "
                        "1..4096; environment SLUICE_SCHEDULER_MAX_NUM_SEQS"));
  EXPECT_THAT(action->text, HasSubstr("http_port: 8000  # int 1..65535; default"));

  const RouterLikeConfig before = config_;
  config_ = RouterLikeConfig();
  ASSERT_TRUE(LoadYaml(action->text).ok());
  EXPECT_EQ(config_.host, before.host);
  EXPECT_EQ(config_.drain_timeout, before.drain_timeout);
  EXPECT_EQ(config_.max_body, before.max_body);
  EXPECT_EQ(config_.temperature, before.temperature);
  EXPECT_EQ(config_.workers, before.workers);
  EXPECT_EQ(config_.max_num_seqs, before.max_num_seqs);
}

TEST_F(ConfigTest, HelpGroupsKeysWithDefaultsAndExamples) {
  const absl::StatusOr<ConfigAction> action = schema_.LoadFrom({"--nonsense", "--help"}, {});
  ASSERT_TRUE(action.ok()) << action.status();
  ASSERT_TRUE(action->exit);
  EXPECT_THAT(action->text, HasSubstr("Usage: sluice-router [flags] [MODEL_DIR]"));
  EXPECT_THAT(action->text, HasSubstr("--http-port  <int 1..65535>\n      Port of the HTTP server. "
                                      "(default 8000)"));
  EXPECT_THAT(action->text, HasSubstr("\nscheduler:\n  --scheduler.max-num-seqs"));
  EXPECT_THAT(action->text, HasSubstr("Examples:\n  sluice-router --http-port 8001\n"));
  // Defaults stay the defaults after a load.
  ASSERT_TRUE(Load({"--http-port", "5"}).ok());
  EXPECT_THAT(schema_.Help(), HasSubstr("(default 8000)"));
}

TEST_F(ConfigTest, VersionIsTheProjectsOwn) {
  const absl::StatusOr<ConfigAction> action = schema_.LoadFrom({"--version"}, {});
  ASSERT_TRUE(action.ok());
  EXPECT_EQ(action->text, absl::StrCat("sluice-router ", Version(), "\n"));
  EXPECT_THAT(std::string(Version()), ::testing::MatchesRegex("[0-9]+\\.[0-9]+\\.[0-9]+"));
}

TEST_F(ConfigTest, LoadReadsTheProcessEnvironment) {
  ASSERT_EQ(setenv("SLUICE_HTTP_PORT", "77", 1), 0);
  const char* argv[] = {"sluice-router", "--host", "h"};
  const absl::Status status = schema_.Load(3, argv).status();
  unsetenv("SLUICE_HTTP_PORT");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(config_.http_port, 77);
  EXPECT_EQ(config_.host, "h");
}

TEST(ConfigSchemaTest, APositionalMayShareAKey) {
  std::string model;
  ConfigSchema schema("sluice", "");
  schema.Add("model", &model, "Folder.");
  schema.AddPositional("model", &model, "Folder.");
  ASSERT_TRUE(schema.LoadFrom({"tiny"}, {{"SLUICE_MODEL", "other"}}).ok());
  EXPECT_EQ(model, "tiny");
  EXPECT_THAT(schema.Print(), HasSubstr("model: \"tiny\"  # text; argument"));
}

TEST(ConfigSchemaDeathTest, KeysMustNotCollide) {
  int value = 0;
  ConfigSchema schema("sluice", "");
  schema.Add("a.b_c", &value, "", 0, 1);
  EXPECT_DEATH(schema.Add("a_b.c", &value, "", 0, 1), "same environment variable");
  EXPECT_DEATH(schema.Add("config", &value, "", 0, 1), "reserved");
}

TEST(ByteSizeTest, ParsesAndFormats) {
  EXPECT_EQ(ParseByteSize("512")->bytes, 512u);
  EXPECT_EQ(ParseByteSize("512B")->bytes, 512u);
  EXPECT_EQ(ParseByteSize("64 KiB")->bytes, 65536u);
  EXPECT_EQ(ParseByteSize("8MiB")->bytes, 8u << 20);
  EXPECT_EQ(ParseByteSize("16777215TiB")->bytes, uint64_t{16777215} << 40);
  for (const char* bad :
       {"", "KiB", "-1", "1.5GiB", "8MB", "1kib", "16777216TiB", "99999999999999999999", "1 2"}) {
    EXPECT_FALSE(ParseByteSize(bad).ok()) << bad;
  }
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{1}, uint64_t{1023}, uint64_t{1024}, uint64_t{1536}, uint64_t{1} << 40,
        std::numeric_limits<uint64_t>::max()}) {
    const std::string text = FormatByteSize(ByteSize{bytes});
    ASSERT_TRUE(ParseByteSize(text).ok()) << text;
    EXPECT_EQ(ParseByteSize(text)->bytes, bytes);
  }
  EXPECT_EQ(FormatByteSize(ByteSize{65536}), "64KiB");
}

}  // namespace
}  // namespace sluice
