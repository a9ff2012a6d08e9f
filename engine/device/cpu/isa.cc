#include "engine/device/cpu/isa.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"

#if defined(SLUICE_X86_KERNELS)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sluice {
namespace {

constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

#if defined(SLUICE_X86_KERNELS)
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// The kernel must save tile registers (XCR0 bits 17 and 18), and this process must ask for them.
bool HasAmx() {
  if (!HasAvx512() || !__builtin_cpu_supports("avx512bf16")) return false;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  unsigned xcr0, high;
  asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = (1u << 17) | (1u << 18);
  if ((xcr0 & kTileState) != kTileState) return false;
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
}
#endif

bool Detect(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return true;
#if defined(SLUICE_X86_KERNELS)
    case Isa::kAvx2:
      return HasAvx2();
    case Isa::kAvx512:
      return HasAvx512();
    case Isa::kAmx:
      return HasAmx();
#else
    default:
      return false;
#endif
  }
  return false;
}

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
  }
  return "?";
}

std::vector<Isa> AvailableIsas() {
  static const std::vector<Isa> available = [] {
    std::vector<Isa> found;
    for (Isa isa : kAllIsas) {
      if (Detect(isa)) found.push_back(isa);
    }
    return found;
  }();
  return available;
}

bool IsaAvailable(Isa isa) {
  for (Isa available : AvailableIsas()) {
    if (available == isa) return true;
  }
  return false;
}

absl::StatusOr<Isa> ChooseIsa(absl::string_view name) {
  const std::vector<Isa> available = AvailableIsas();
  if (name.empty() || name == "auto") return available.back();
  const std::string names = absl::StrJoin(
      available, ", ", [](std::string* out, Isa isa) { absl::StrAppend(out, IsaName(isa)); });
  for (Isa isa : kAllIsas) {
    if (name != IsaName(isa)) continue;
    if (IsaAvailable(isa)) return isa;
    return absl::FailedPreconditionError(
        absl::StrCat("isa: this processor cannot run '", name, "'; available: ", names));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("isa: unknown instruction family '", name, "'; available: auto, ", names));
}

const cpu::Kernels& KernelsFor(Isa isa) {
  SLUICE_CHECK(IsaAvailable(isa));
  switch (isa) {
#if defined(SLUICE_X86_KERNELS)
    case Isa::kAvx2:
      return *cpu::Avx2Kernels();
    case Isa::kAvx512:
      return *cpu::Avx512Kernels();
    case Isa::kAmx:
      return *cpu::AmxKernels();
#endif
    default:
      return *cpu::PortableKernels();
  }
}

}  // namespace sluice
