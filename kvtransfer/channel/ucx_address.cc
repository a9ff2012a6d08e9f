#include "kvtransfer/channel/ucx_address.h"

#include <xxhash.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/utf8.h"

namespace sluice {
namespace {

constexpr absl::string_view kMagic = "SLU2";
constexpr size_t kFixedBytes =
    kMagic.size() + sizeof(uint32_t) + sizeof(uint64_t) + 1 + sizeof(uint64_t);

// The low half of a worker address' first byte is its version, counted from 0: UCX knows two.
constexpr uint8_t kVersionMask = 0x0f;
constexpr uint8_t kLastVersion = 1;

template <typename T>
void Append(T value, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// REQUIRES: so many bytes are there.
template <typename T>
T Take(absl::string_view* bytes) {
  T value;
  std::memcpy(&value, bytes->data(), sizeof(value));
  bytes->remove_prefix(sizeof(value));
  return value;
}

}  // namespace

std::string EncodeUcxAddress(const UcxAddress& address) {
  const std::string name = BoundedUtf8(address.name, kMaxUcxNameBytes);
  std::string bytes(kMagic);
  Append(static_cast<uint32_t>(kFixedBytes + name.size() + address.worker.size()), &bytes);
  Append(address.channel_id, &bytes);
  Append(static_cast<uint8_t>(name.size()), &bytes);
  bytes += name;
  bytes += address.worker;
  Append(static_cast<uint64_t>(XXH3_64bits(bytes.data(), bytes.size())), &bytes);
  return bytes;
}

absl::StatusOr<UcxAddress> ParseUcxAddress(absl::string_view bytes) {
  if (bytes.size() < kFixedBytes || bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("not the address of a UCX channel");
  }
  const absl::string_view checked = bytes.substr(0, bytes.size() - sizeof(uint64_t));
  absl::string_view check = bytes.substr(checked.size());
  absl::string_view rest = checked.substr(kMagic.size());
  if (Take<uint32_t>(&rest) != bytes.size()) {
    return absl::InvalidArgumentError("UCX address cut short or with bytes left over");
  }
  if (Take<uint64_t>(&check) != XXH3_64bits(checked.data(), checked.size())) {
    return absl::InvalidArgumentError("UCX address damaged");
  }
  UcxAddress address;
  address.channel_id = Take<uint64_t>(&rest);
  const size_t name_bytes = Take<uint8_t>(&rest);
  if (name_bytes > kMaxUcxNameBytes || rest.size() <= name_bytes) {
    return absl::InvalidArgumentError("UCX address without a worker");
  }
  address.name = BoundedUtf8(rest.substr(0, name_bytes), kMaxUcxNameBytes);
  address.worker = std::string(rest.substr(name_bytes));
  const uint8_t version = static_cast<uint8_t>(address.worker[0]) & kVersionMask;
  if (version > kLastVersion) {
    return absl::InvalidArgumentError(absl::StrCat("UCX worker address of version ", version));
  }
  return address;
}

}  // namespace sluice
