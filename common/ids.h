// Strong ids: two integers of different meaning cannot be swapped. Value types, any thread.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <ostream>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace sluice {

template <typename Tag, typename T>
struct StrongId {
  T value{};

  constexpr StrongId() = default;
  constexpr explicit StrongId(T v) : value(v) {}
  friend constexpr auto operator<=>(const StrongId&, const StrongId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const StrongId& id) {
    return H::combine(std::move(h), id.value);
  }
  friend std::ostream& operator<<(std::ostream& os, const StrongId& id) { return os << id.value; }
};

// 128 random bits, written as 32 hex digits; 16 raw bytes on the wire.
template <typename Tag>
struct StrongId128 {
  std::array<uint8_t, 16> bytes{};

  friend constexpr auto operator<=>(const StrongId128&, const StrongId128&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const StrongId128& id) {
    return H::combine(std::move(h), id.bytes);
  }
  bool is_zero() const { return bytes == std::array<uint8_t, 16>{}; }
  std::string ToString() const { return absl::BytesToHexString(ToWire()); }
  absl::string_view ToWire() const {
    return absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  // False when `wire` is not exactly 16 bytes; *id is untouched then.
  static bool FromWire(absl::string_view wire, StrongId128* id) {
    if (wire.size() != 16) return false;
    std::memcpy(id->bytes.data(), wire.data(), 16);
    return true;
  }
  friend std::ostream& operator<<(std::ostream& os, const StrongId128& id) {
    return os << id.ToString();
  }
};

// One client request, or one of the n samples of it; minted by the router.
using RequestId = StrongId128<struct RequestIdTag>;
// The capability to write one request's KV into one decode worker; minted by that worker.
using TransferId = StrongId128<struct TransferIdTag>;
// Random per process start: a restarted process is another peer.
using Incarnation = StrongId<struct IncarnationTag, uint64_t>;
// Raised by the router each time it plans a request anew; starts at 1.
using Attempt = StrongId<struct AttemptTag, uint32_t>;
// Index of a KV block in one worker's pool, 0 <= value < num_blocks.
using BlockId = StrongId<struct BlockIdTag, int32_t>;
// A token id of the model's vocabulary is a plain int32_t: it is data, not a handle.
using TokenId = int32_t;

}  // namespace sluice
