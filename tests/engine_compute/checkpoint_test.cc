// What the weights room refuses, by file and tensor name; and that it reads what it accepts.
#include "engine/weights/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/weights/deepseek_tensors.h"
#include "tests/engine_compute/model_harness.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest()
      : dir_(fs::path(testing::TempDir()) /
             absl::StrCat("checkpoint_", getpid(), "_",
                          testing::UnitTest::GetInstance()->current_test_info()->name())) {
    fs::remove_all(dir_);
    fs::create_directories(dir_);
  }
  ~CheckpointTest() override { fs::remove_all(dir_); }

  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(dir_ / name, std::ios::binary) << bytes;
  }
  static std::string Safetensors(const std::string& header, size_t data_bytes) {
    const uint64_t length = header.size();
    std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
    return file + header + std::string(data_bytes, '\x01');
  }
  // The status of opening a single-file checkpoint with this header.
  absl::Status OpenHeader(const std::string& header, size_t data_bytes) {
    Write("model.safetensors", Safetensors(header, data_bytes));
    return Checkpoint::Open(dir_.string()).status();
  }
  static void ExpectRefused(const absl::Status& status, const std::string& reason) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
  }

  const fs::path dir_;
};

constexpr char kGood[] =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}   )";

TEST_F(CheckpointTest, ReadsASingleFile) {
  ASSERT_TRUE(OpenHeader(kGood, 32).ok());
  const auto checkpoint = Checkpoint::Open(dir_.string());
  const std::vector<TensorView> list = (*checkpoint)->List();
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].info->name, "a");
  EXPECT_EQ(list[0].info->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(list[1].info->dtype, TensorDType::kBF16);
  EXPECT_EQ(list[1].data - list[0].data, 24);
  EXPECT_EQ((*checkpoint)->Find("c"), nullptr);
}

TEST_F(CheckpointTest, AcceptsEmptyTensorsAndScalars) {
  EXPECT_TRUE(OpenHeader(R"({"e":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},)"
                         R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
                         4)
                  .ok());
}

TEST_F(CheckpointTest, NoWeightsAtAll) {
  EXPECT_EQ(Checkpoint::Open(dir_.string()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, RefusesBrokenFiles) {
  Write("model.safetensors", "short");
  ExpectRefused(Checkpoint::Open(dir_.string()).status(), "too short");

  const std::string good = Safetensors(kGood, 32);
  Write("model.safetensors", good.substr(0, 40));
  ExpectRefused(Checkpoint::Open(dir_.string()).status(), "truncated");
  Write("model.safetensors", good.substr(0, good.size() - 1));
  ExpectRefused(Checkpoint::Open(dir_.string()).status(), "outside the data");

  std::string huge = good;
  const uint64_t length = 200'000'000;
  std::memcpy(huge.data(), &length, sizeof(length));
  Write("model.safetensors", huge);
  ExpectRefused(Checkpoint::Open(dir_.string()).status(), "above the limit");

  fs::remove(dir_ / "model.safetensors");
  fs::create_directory(dir_ / "model.safetensors");
  ExpectRefused(Checkpoint::Open(dir_.string()).status(), "not a regular file");
}

TEST_F(CheckpointTest, RefusesBadHeaders) {
  struct Case {
    std::string header;
    size_t data_bytes;
    std::string reason;
  };
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return absl::StrCat(R"({"t":{"dtype":")", dtype, R"(","shape":)", shape, R"(,"data_offsets":)",
                        offsets, "}}");
  };
  const std::vector<Case> cases = {
      {"{\"a\":", 0, "not a JSON object"},
      {"[1,2]", 0, "not a JSON object"},
      {R"({"t":7})", 0, "'t': is not an object"},
      {R"({"t":{"dtype":"F32","shape":[1]}})", 4, "lacks dtype, shape or data_offsets"},
      {R"({"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
       "'dtype' twice"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4, "unknown field 'x'"},
      {R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
       R"("t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "'t' appears twice"},
      {tensor("F33", "[1]", "[0,4]"), 4, "unknown dtype 'F33'"},
      {tensor("F32", "[-1]", "[0,4]"), 4, "non-negative"},
      {tensor("F32", "[1.5]", "[0,4]"), 4, "non-negative"},
      {tensor("F32", "3", "[0,4]"), 4, "shape is not an array"},
      {tensor("F32", "[1]", "[-4,0]"), 4, "non-negative"},
      {tensor("F32", "[1]", "[0]"), 4, "data_offsets"},
      {tensor("F32", "[1]", "[4,0]"), 4, "outside the data"},
      {tensor("F32", "[1]", "[0,8]"), 4, "outside the data"},
      {tensor("F32", "[3]", "[0,8]"), 8, "need 12 bytes"},
      {tensor("F32", "[4294967296,4294967296,2]", "[0,8]"), 8, "overflows"},
      {tensor("F32", "[1]", "[0,4]"), 8, "belong to none"},
      {tensor("F32", "[1]", "[4,8]"), 8, "hole of 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       12, "'b' overlaps"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.header);
    ExpectRefused(OpenHeader(c.header, c.data_bytes), c.reason);
  }
}

TEST_F(CheckpointTest, RefusesBadIndexes) {
  const std::string one = R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  Write("x.safetensors", Safetensors(one, 4));
  Write("y.safetensors", Safetensors(one, 4));
  fs::create_directories(dir_ / "outside");
  Write("outside/z.safetensors", Safetensors(one, 4));
  fs::create_symlink(dir_ / "outside" / "z.safetensors", dir_ / "link.safetensors");
  const auto open = [&](const std::string& weight_map) {
    Write("model.safetensors.index.json", absl::StrCat(R"({"weight_map":)", weight_map, "}"));
    return Checkpoint::Open(dir_.string()).status();
  };
  EXPECT_TRUE(open(R"({"t":"x.safetensors"})").ok());
  ExpectRefused(open("3"), "weight_map");
  ExpectRefused(open("{"), "weight_map");
  ExpectRefused(open(R"({"t":1})"), "not a string");
  ExpectRefused(open(R"({"t":"x.safetensors","t":"x.safetensors"})"), "appears twice");
  ExpectRefused(open(R"({"t":".."})"), "plain file name");
  ExpectRefused(open(R"({"t":"../x.safetensors"})"), "plain file name");
  ExpectRefused(open(R"({"t":"/etc/passwd"})"), "plain file name");
  ExpectRefused(open(R"({"t":"outside/z.safetensors"})"), "plain file name");
  ExpectRefused(open(R"({"t":"link.safetensors"})"), "leads out of the model folder");
  EXPECT_EQ(open(R"({"t":"none.safetensors"})").code(), absl::StatusCode::kNotFound);
  ExpectRefused(open(R"({"t":"x.safetensors","u":"x.safetensors"})"), "'u'");
  EXPECT_THAT(std::string(open(R"({"t":"x.safetensors","u":"y.safetensors"})").message()),
              HasSubstr("is also in"));
  Write("y.safetensors", Safetensors(R"({"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                     R"("w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                     8));
  EXPECT_THAT(std::string(open(R"({"t":"x.safetensors","v":"y.safetensors"})").message()),
              HasSubstr("'w' is missing from"));
}

// A copy of a golden checkpoint whose header is edited in place, so offsets stay valid.
class ModelTensorsTest : public CheckpointTest {
 protected:
  void CopyModel(const std::string& name) {
    for (const auto& entry : fs::directory_iterator(GoldenDir(name))) {
      fs::copy(entry.path(), dir_ / entry.path().filename());
    }
  }
  // Replaces `from` with `to` (same length) in every file that has it.
  void Edit(const std::string& from, const std::string& to) {
    ASSERT_EQ(from.size(), to.size());
    int edited = 0;
    for (const auto& entry : fs::directory_iterator(dir_)) {
      std::ifstream in(entry.path(), std::ios::binary);
      const std::string text((std::istreambuf_iterator<char>(in)), {});
      const std::string changed = absl::StrReplaceAll(text, {{from, to}});
      if (changed == text) continue;
      ++edited;
      std::ofstream(entry.path(), std::ios::binary) << changed;
    }
    ASSERT_GT(edited, 0) << from;
  }
  absl::Status Validate() {
    const auto spec = LoadModelSpec(dir_.string());
    if (!spec.ok()) return spec.status();
    const auto checkpoint = Checkpoint::Open(dir_.string());
    if (!checkpoint.ok()) return checkpoint.status();
    return ValidateCheckpoint(*spec, **checkpoint);
  }
  void ExpectTensorRefused(const std::string& tensor, const std::string& reason) {
    const absl::Status status = Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(tensor));
    EXPECT_THAT(std::string(status.message()), HasSubstr(reason));
  }
};

TEST_F(ModelTensorsTest, AcceptsTheGoldenCheckpoints) {
  for (const char* name : {"tiny-v2lite", "tiny-v2", "tiny-v3", "tiny-v3-chat", "tiny-v3-fp8",
                           "dev-v2-lite", "dev-v3", "dev-v3-fp8"}) {
    SCOPED_TRACE(name);
    const auto spec = LoadModelSpec(GoldenDir(name));
    ASSERT_TRUE(spec.ok()) << spec.status();
    const auto checkpoint = Checkpoint::Open(GoldenDir(name));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const absl::Status status = ValidateCheckpoint(*spec, **checkpoint);
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST_F(ModelTensorsTest, MissingAndSurplus) {
  CopyModel("tiny-v3");
  Edit("layers.2.mlp.experts.3.up_proj", "layers.2.mlp.experts.3.UP_proj");
  ExpectTensorRefused("model.layers.2.mlp.experts.3.up_proj.weight", "is missing");
  Edit("layers.2.mlp.experts.3.UP_proj", "layers.2.mlp.experts.3.up_proj");
  // A layer behind the MTP layer, which config.json says nothing about.
  Edit("model.layers.4.enorm.weight", "model.layers.9.enorm.weight");
  ExpectTensorRefused("model.layers.9.enorm.weight", "not part of the model");
}

TEST_F(ModelTensorsTest, OldRotaryBuffersAreIgnored) {
  CopyModel("tiny-v3");
  Edit("model.layers.4.enorm.weight", "model.l.rotary_emb.inv_freq");
  const absl::Status status = Validate();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(ModelTensorsTest, Misshapen) {
  CopyModel("tiny-v3");
  Edit("\"intermediate_size\": 96", "\"intermediate_size\": 80");
  ExpectTensorRefused("model.layers.0.mlp.gate_proj.weight", "config.json asks for [80, 64]");
}

TEST_F(ModelTensorsTest, Fp16) {
  CopyModel("tiny-v3");
  Edit("\"BF16\"", "\"F16\" ");
  ExpectTensorRefused("model.", "is F16");
}

TEST_F(ModelTensorsTest, Fp8WithoutScales) {
  CopyModel("tiny-v3-fp8");
  Edit("model.layers.0.self_attn.o_proj.weight_scale_inv",
       "model.layers.0.self_attn.o_proj.weight_scale_inx");
  ExpectTensorRefused("model.layers.0.self_attn.o_proj.weight", "has no scales");
}

TEST(WeightReader, DecodesFp8TimesScale) {
  const auto checkpoint = Checkpoint::Open(GoldenDir("dev-v3-fp8"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::string name = "model.layers.0.self_attn.q_a_proj.weight";  // [136, 160], scales [2, 2]
  const WeightReader reader(**checkpoint, name);
  const TensorView* view = (*checkpoint)->Find(name);
  const TensorView* scales = (*checkpoint)->Find(name + "_scale_inv");
  for (int64_t row : {0, 127, 128, 135}) {
    for (int64_t column : {0, 127, 128, 159}) {
      float scale;
      std::memcpy(&scale, scales->data + 4 * (row / 128 * 2 + column / 128), 4);
      const uint8_t bits = view->data[row * 160 + column];
      const int exponent = bits >> 3 & 15, mantissa = bits & 7;
      const double magnitude =
          exponent == 0 ? mantissa / 512.0 : (1 + mantissa / 8.0) * std::pow(2.0, exponent - 7);
      EXPECT_FLOAT_EQ(reader.At(row, column),
                      static_cast<float>((bits & 128 ? -magnitude : magnitude) * scale));
    }
  }
}

TEST_F(ModelTensorsTest, DigestFollowsEveryByte) {
  CopyModel("tiny-v3");
  const auto digest = [&] {
    const auto checkpoint = Checkpoint::Open(dir_.string());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return *ModelDigest(**checkpoint);
  };
  const std::string original = digest();
  EXPECT_EQ(original.size(), 64u);
  EXPECT_EQ(digest(), original);
  const fs::path shard = dir_ / "model-00002-of-00002.safetensors";
  std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-1, std::ios::end);
  const char last = static_cast<char>(file.get() ^ 1);
  file.seekp(-1, std::ios::end);
  file.put(last);
  file.close();
  const std::string other_payload = digest();
  EXPECT_NE(other_payload, original);
  Edit("\"rope_theta\": 10000", "\"rope_theta\": 10001");
  EXPECT_NE(digest(), other_payload);
}

}  // namespace
}  // namespace sluice
