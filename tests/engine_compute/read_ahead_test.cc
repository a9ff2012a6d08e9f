// That what is wanted comes into the page cache by itself, however long it is.
#include "engine/weights/read_ahead.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

// Longer than what Linux reads for one hint.
constexpr size_t kTensorBytes = size_t{48} << 20;

class ReadAheadTest : public testing::Test {
 protected:
  // Tensors "a.0", "a.1" and "b.0" in two files; "a.1" lies in the second.
  ReadAheadTest() : dir_(fs::path(testing::TempDir()) / absl::StrCat("read_ahead_", getpid())) {
    fs::remove_all(dir_);
    fs::create_directories(dir_);
    WriteShard("one.safetensors", {"a.0"});
    WriteShard("two.safetensors", {"b.0", "a.1"});
    std::ofstream(dir_ / "model.safetensors.index.json")
        << R"({"weight_map":{"a.0":"one.safetensors","a.1":"two.safetensors",)"
        << R"("b.0":"two.safetensors"}})";
    checkpoint_ = *Checkpoint::Open(dir_.string());
  }
  ~ReadAheadTest() override {
    checkpoint_.reset();
    fs::remove_all(dir_);
  }

  void WriteShard(const std::string& name, const std::vector<std::string>& tensors) {
    std::string header = "{";
    for (size_t i = 0; i < tensors.size(); ++i) {
      absl::StrAppend(&header, i > 0 ? "," : "", "\"", tensors[i], R"(":{"dtype":"U8","shape":[)",
                      kTensorBytes, R"(],"data_offsets":[)", i * kTensorBytes, ",",
                      (i + 1) * kTensorBytes, "]}");
    }
    header += "}";
    const uint64_t length = header.size();
    std::ofstream file(dir_ / name, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), sizeof(length));
    file << header << std::string(tensors.size() * kTensorBytes, 'x');
  }

  // Puts the files out of the page cache. False: they stay, as in a file system of memory.
  bool DropFromCache() {
    for (const auto& entry : fs::directory_iterator(dir_)) {
      const int fd = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
      fsync(fd);
      posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
      close(fd);
    }
    return CachedShare("a.0") < 0.5 && CachedShare("a.1") < 0.5;
  }

  double CachedShare(const std::string& tensor) const {
    const TensorView* const view = checkpoint_->Find(tensor);
    constexpr uintptr_t kPage = 4096;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(view->data) + kPage - 1) / kPage * kPage;
    std::vector<unsigned char> resident(kTensorBytes / kPage - 1);
    if (mincore(reinterpret_cast<void*>(begin), resident.size() * kPage, resident.data()) != 0) {
      return 1;
    }
    double count = 0;
    for (const unsigned char page : resident) count += page & 1;
    return count / static_cast<double>(resident.size());
  }

  const fs::path dir_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_F(ReadAheadTest, RangesAreWholeRunsOfTensorsInTheirFiles) {
  const std::vector<FileRange> a = checkpoint_->RangesOf("a.");
  ASSERT_EQ(a.size(), 2U);
  EXPECT_EQ(a[0].file->path(), (dir_ / "one.safetensors").string());
  EXPECT_EQ(a[0].begin, 0U);
  EXPECT_EQ(a[0].end, kTensorBytes);
  EXPECT_EQ(a[1].begin, kTensorBytes);
  EXPECT_EQ(a[1].end, 2 * kTensorBytes);
  const std::vector<FileRange> all = checkpoint_->RangesOf("");
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[1].end, 2 * kTensorBytes);
  EXPECT_TRUE(checkpoint_->RangesOf("c.").empty());
}

TEST_F(ReadAheadTest, BringsAllOfWhatIsWantedIntoTheCacheAndNothingElse) {
  if (!DropFromCache()) GTEST_SKIP() << "the files' pages cannot be dropped here";
  ReadAhead ahead(checkpoint_.get());
  ahead.Want("a.");
  const absl::Time give_up_at = MonotonicNow() + absl::Seconds(60);
  while ((CachedShare("a.0") < 1 || CachedShare("a.1") < 1) && MonotonicNow() < give_up_at) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(CachedShare("a.0"), 1);
  EXPECT_EQ(CachedShare("a.1"), 1);
  EXPECT_LT(CachedShare("b.0"), 0.5);
}

TEST_F(ReadAheadTest, EndsInTheMiddle) {
  DropFromCache();
  for (int i = 0; i < 20; ++i) {
    ReadAhead ahead(checkpoint_.get());
    ahead.Want("");
  }
}

}  // namespace
}  // namespace sluice
