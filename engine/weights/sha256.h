// SHA-256 of bytes that come in pieces. One object, one thread.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace sluice {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(const void* data, size_t size_bytes);
  // With its length before it, so that parts cannot run into each other.
  void AddPart(absl::string_view part);
  // Lower-case hex, 64 characters. Call once, last.
  std::string Hex();

 private:
  void* const context_;  // EVP_MD_CTX
};

std::string Sha256Hex(absl::string_view bytes);

}  // namespace sluice
