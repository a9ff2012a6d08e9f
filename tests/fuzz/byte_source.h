// Turns a fuzzer's bytes into decisions: the same bytes give the same decisions, and when they run
// out every further answer is zero or empty, so that any prefix of an input is an input too.
// Owned by one run of one target; one thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice::fuzz {

class ByteSource {
 public:
  ByteSource(const uint8_t* data, size_t size_bytes)
      : rest_(reinterpret_cast<const char*>(data), size_bytes) {}

  bool empty() const { return rest_.empty(); }

  uint8_t Byte() {
    if (rest_.empty()) return 0;
    const uint8_t value = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    return value;
  }
  // In [0, bound). REQUIRES: 0 < bound <= 256.
  int Below(int bound) { return Byte() % bound; }
  bool Bool() { return (Byte() & 1) != 0; }
  uint16_t Uint16() {
    const uint16_t low = Byte();
    return static_cast<uint16_t>(low | Byte() << 8);
  }

  // At most `size_bytes` raw bytes.
  absl::string_view Raw(size_t size_bytes) {
    const absl::string_view taken = rest_.substr(0, size_bytes);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  // Up to the next `end`, which is taken too, or everything.
  absl::string_view Until(char end) {
    const absl::string_view taken = rest_.substr(0, rest_.find(end));
    rest_.remove_prefix(std::min(rest_.size(), taken.size() + 1));
    return taken;
  }
  absl::string_view Rest() { return Raw(rest_.size()); }

 private:
  absl::string_view rest_;
};

}  // namespace sluice::fuzz
