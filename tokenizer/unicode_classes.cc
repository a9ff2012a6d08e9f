#include "tokenizer/unicode_classes.h"

#include <algorithm>
#include <array>
#include <map>
#include <vector>

namespace sluice {
namespace {

constexpr uint32_t kNumCodePoints = 0x110000;
constexpr uint32_t kPageSize = 256;

// Two-stage table: most of the code space is a few pages repeated, so it is some 40 KiB instead of
// 1 MiB.
class ClassTable {
 public:
  ClassTable() {
    std::map<Page, uint16_t> known;
    int range = 0;
    for (uint32_t page_index = 0; page_index < page_of_.size(); ++page_index) {
      Page page{};
      for (uint32_t i = 0; i < kPageSize; ++i) {
        const uint32_t code_point = page_index * kPageSize + i;
        while (range < kNumUnicodeRanges && kUnicodeRanges[range].last < code_point) ++range;
        if (range < kNumUnicodeRanges && kUnicodeRanges[range].first <= code_point) {
          page[i] = kUnicodeRanges[range].classes;
        }
      }
      auto [it, inserted] = known.try_emplace(page, static_cast<uint16_t>(pages_.size()));
      if (inserted) pages_.push_back(page);
      page_of_[page_index] = it->second;
    }
  }

  uint8_t Get(char32_t code_point) const {
    if (code_point >= kNumCodePoints) return 0;
    return pages_[page_of_[code_point / kPageSize]][code_point % kPageSize];
  }

 private:
  using Page = std::array<uint8_t, kPageSize>;
  std::array<uint16_t, kNumCodePoints / kPageSize> page_of_{};
  std::vector<Page> pages_;
};

}  // namespace

uint8_t UnicodeClassesOf(char32_t code_point) {
  static const ClassTable* const table = new ClassTable();  // never destroyed: used by any thread
  return table->Get(code_point);
}

}  // namespace sluice
