// Promise 1 of the design: a row of logits and every KV byte depend only on that sequence's tokens.
// Random mixes of sequences, chunkings, block tables and thread counts must give the very bits of
// each sequence run alone, in one piece, by one thread. BATCH_INVARIANCE_SEED=N makes other mixes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/device/cpu/isa.h"
#include "tests/engine_compute/model_harness.h"

namespace sluice {
namespace {

constexpr int kNumSequences = 5;
constexpr int kNumBlocks = 80;
constexpr int kRoundsPerThreadCount = 1;
// Under a sanitizer the arithmetic is twenty times slower, and what is looked for is in memory and
// threads: the small checkpoint and the vector kernels are enough.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
constexpr int kMinThreads = 2, kMaxThreads = 2;
#else
constexpr bool kSanitized = false;
constexpr int kMinThreads = 1, kMaxThreads = 4;
#endif

uint64_t Seed() {
  const char* const text = std::getenv("BATCH_INVARIANCE_SEED");
  if (text == nullptr) return 1;
  uint64_t seed = 0;
  EXPECT_TRUE(absl::SimpleAtoi(text, &seed)) << "BATCH_INVARIANCE_SEED=" << text;
  return seed;
}

struct Case {
  std::string checkpoint;
  std::string isa;
  DType dtype;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (Isa isa : AvailableIsas()) {
    if (kSanitized && isa == Isa::kPortable) continue;
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      if (!kSanitized) {
        cases.push_back({"dev-v3", IsaName(isa), dtype});  // latent 512, 8 heads, noaux_tc
      }
      cases.push_back({"tiny-v2lite", IsaName(isa), dtype});  // rows of 40: padded; no q_lora
    }
  }
  return cases;
}

struct Expected {
  std::vector<std::vector<float>> logits;  // [position][vocab]
  std::vector<std::vector<uint8_t>> kv;    // [position] bytes of all layers
};

std::vector<uint8_t> KvOf(const LoadedModel& loaded, const TestSequence& sequence, int position) {
  std::vector<uint8_t> bytes;
  const int64_t row_bytes = loaded.spec.kv_row_dim() * DTypeBytes(loaded.kv->layout().dtype);
  for (int64_t layer = 0; layer < loaded.spec.num_hidden_layers; ++layer) {
    const uint8_t* row =
        loaded.kv->Layer(sequence.blocks[static_cast<size_t>(position / 64)], layer) +
        position % 64 * row_bytes;
    bytes.insert(bytes.end(), row, row + row_bytes);
  }
  return bytes;
}

class BatchInvariance : public testing::TestWithParam<Case> {
 protected:
  using Random = std::mt19937_64;
  static int Uniform(Random& random, int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  }

  LoadedModel Load(int num_threads) {
    return LoadModelForTest(GoldenDir(GetParam().checkpoint), GetParam().dtype, GetParam().isa,
                            num_threads, kNumBlocks);
  }

  // Short ones, and some beyond one and two partitions of the attention (256 tokens each).
  void MakePrompts(Random& random, int64_t vocab) {
    const int longest[kNumSequences] = {3, 70, 200, 300, 640};
    for (int length : longest) {
      std::vector<TokenId> tokens;
      for (int i = Uniform(random, (length * 7 + 7) / 8, length); i > 0; --i) {
        tokens.push_back(Uniform(random, 0, static_cast<int>(vocab) - 1));
      }
      prompts_.push_back(tokens);
    }
  }

  void RunReference(LoadedModel& loaded) {
    for (const auto& tokens : prompts_) {
      TestSequence sequence = MakeSequence(tokens, static_cast<int>(tokens.size()));
      Expected expected;
      expected.logits = RunAllLogits(loaded, sequence);
      for (int i = 0; i < sequence.computed; ++i) {
        expected.kv.push_back(KvOf(loaded, sequence, i));
      }
      expected_.push_back(std::move(expected));
    }
  }

  // One step over a random subset of unfinished sequences, in random order and chunks.
  void Step(Random& random, LoadedModel& loaded, std::vector<TestSequence>& sequences) {
    std::vector<size_t> order;
    for (size_t s = 0; s < sequences.size(); ++s) {
      if (sequences[s].computed < static_cast<int>(sequences[s].tokens.size()) &&
          Uniform(random, 0, 2) > 0) {
        order.push_back(s);
      }
    }
    std::shuffle(order.begin(), order.end(), random);
    std::vector<SequenceSlice> slices;
    for (size_t s : order) {
      const int left = static_cast<int>(sequences[s].tokens.size()) - sequences[s].computed;
      const int sizes[] = {1, 2, 17, 64, 130, left};
      const int count = std::min(left, sizes[Uniform(random, 0, 5)]);
      slices.push_back(sequences[s].Slice(count, Uniform(random, 0, count)));
    }
    size_t rows = 0;
    for (const SequenceSlice& slice : slices) rows += static_cast<size_t>(slice.num_logit_rows);
    const size_t vocab = static_cast<size_t>(loaded.spec.vocab_size);
    std::vector<float> logits(rows * vocab);
    loaded.model->Forward(slices, absl::MakeSpan(logits));

    const float* row = logits.data();
    for (size_t i = 0; i < slices.size(); ++i) {
      TestSequence& sequence = sequences[order[i]];
      const Expected& expected = expected_[order[i]];
      const int count = static_cast<int>(slices[i].tokens.size());
      for (int t = count - slices[i].num_logit_rows; t < count; ++t, row += vocab) {
        const size_t position = static_cast<size_t>(sequence.computed) + static_cast<size_t>(t);
        ASSERT_EQ(std::memcmp(row, expected.logits[position].data(), vocab * sizeof(float)), 0)
            << "logits of sequence " << order[i] << ", position " << position << ", chunk of "
            << count << " among " << slices.size() << " slices";
      }
      for (int t = 0; t < count; ++t) {
        const int position = sequence.computed + t;
        ASSERT_EQ(KvOf(loaded, sequence, position), expected.kv[static_cast<size_t>(position)])
            << "KV of sequence " << order[i] << ", position " << position;
      }
      sequence.computed += count;
    }
  }

  void RunRound(Random& random, LoadedModel& loaded) {
    std::vector<BlockId> pool;
    for (int i = 0; i < kNumBlocks; ++i) pool.push_back(BlockId(i));
    std::shuffle(pool.begin(), pool.end(), random);
    // What earlier sequences left in the blocks must not matter, not even NaN.
    for (BlockId block : pool) {
      const absl::Span<uint8_t> bytes = loaded.kv->Block(block);
      std::fill(bytes.begin(), bytes.end(), static_cast<uint8_t>(0xff));
    }
    std::vector<TestSequence> sequences;
    for (const auto& tokens : prompts_) {
      TestSequence sequence;
      sequence.tokens = tokens;
      for (size_t covered = 0; covered < tokens.size(); covered += 64) {
        sequence.blocks.push_back(pool.back());
        pool.pop_back();
      }
      sequences.push_back(std::move(sequence));
    }
    const auto unfinished = [&] {
      return std::any_of(sequences.begin(), sequences.end(), [](const TestSequence& s) {
        return s.computed < static_cast<int>(s.tokens.size());
      });
    };
    for (int step = 0; step < 5000 && unfinished(); ++step) {
      Step(random, loaded, sequences);
      if (HasFatalFailure()) return;
    }
    EXPECT_FALSE(unfinished());
  }

  std::vector<std::vector<TokenId>> prompts_;
  std::vector<Expected> expected_;
};

TEST_P(BatchInvariance, RandomMixesGiveTheBitsOfEachSequenceAlone) {
  const uint64_t seed = Seed();
  SCOPED_TRACE(absl::StrCat("BATCH_INVARIANCE_SEED=", seed));
  Random random(seed);
  {
    LoadedModel alone = Load(/*num_threads=*/1);
    ASSERT_NE(alone.model, nullptr);
    MakePrompts(random, alone.spec.vocab_size);
    RunReference(alone);
  }
  for (int num_threads = kMinThreads; num_threads <= kMaxThreads; ++num_threads) {
    SCOPED_TRACE(absl::StrCat(num_threads, " threads"));
    LoadedModel loaded = Load(num_threads);
    ASSERT_NE(loaded.model, nullptr);
    for (int round = 0; round < kRoundsPerThreadCount; ++round) {
      RunRound(random, loaded);
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, BatchInvariance, testing::ValuesIn(Cases()), [](const auto& info) {
  std::string name =
      absl::StrCat(info.param.checkpoint, "_", info.param.isa, "_", DTypeName(info.param.dtype));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace sluice
