// Instruction families of the CPU backend, and which of them this processor can run. Any thread.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/device/cpu/kernels.h"

namespace sluice {

enum class Isa {
  kPortable,  // plain C++
  kAvx2,      // AVX2 and FMA
  kAvx512,    // AVX-512 F, BW, VL and DQ
  kAmx,       // that, AVX-512 BF16, and AMX tiles with bf16
};

const char* IsaName(Isa isa);  // "portable", "avx2", "avx512", "amx"

// Compiled in, and supported by this processor and its kernel.
bool IsaAvailable(Isa isa);
std::vector<Isa> AvailableIsas();  // worst first; never empty

// "" and "auto" mean the best available. INVALID_ARGUMENT: no such name; FAILED_PRECONDITION: this
// processor lacks it; both say what is available.
absl::StatusOr<Isa> ChooseIsa(absl::string_view name);

// REQUIRES: IsaAvailable(isa).
const cpu::Kernels& KernelsFor(Isa isa);

}  // namespace sluice
