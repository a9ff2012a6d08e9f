#include "kvtransfer/channel/ucx_address.h"

#include <cstring>

namespace sluice {
namespace {

// Magic, channel id, length of the name (u8), name, worker address.
constexpr absl::string_view kMagic = "SLU1";
constexpr size_t kIdBytes = sizeof(uint64_t);

}  // namespace

std::string EncodeUcxAddress(const UcxAddress& address) {
  std::string bytes(kMagic);
  bytes.append(reinterpret_cast<const char*>(&address.channel_id), kIdBytes);
  const std::string name = address.name.substr(0, kMaxUcxNameBytes);
  bytes.push_back(static_cast<char>(name.size()));
  bytes += name;
  bytes += address.worker;
  return bytes;
}

absl::StatusOr<UcxAddress> ParseUcxAddress(absl::string_view bytes) {
  if (bytes.size() < kMagic.size() + kIdBytes + 1 || bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("not the address of a UCX channel");
  }
  bytes.remove_prefix(kMagic.size());
  UcxAddress address;
  std::memcpy(&address.channel_id, bytes.data(), kIdBytes);
  bytes.remove_prefix(kIdBytes);
  const size_t name_bytes = static_cast<uint8_t>(bytes[0]);
  bytes.remove_prefix(1);
  if (name_bytes > kMaxUcxNameBytes || bytes.size() <= name_bytes) {
    return absl::InvalidArgumentError("UCX address cut short");
  }
  address.name = std::string(bytes.substr(0, name_bytes));
  address.worker = std::string(bytes.substr(name_bytes));
  return address;
}

}  // namespace sluice
