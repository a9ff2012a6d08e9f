// AMX tile instructions; tiles have 16 rows (see TileConfig) of 64 bytes. Written as assembly
// with a memory clobber: GCC 12's intrinsics let the compiler move ordinary stores past a tile
// load. Tile numbers must be literals, hence macros.
//
// SLUICE_TILE_DOT(c, a, b): C[m][n] += sum over k of A[m][2k] B[k][2n] + A[m][2k+1] B[k][2n+1],
// bf16 into fp32, k ascending. Each row of C depends on its row of A alone.
#pragma once

#include <cstdint>

#define SLUICE_TILE_LOAD(tile, base, stride_bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(base), "r"(stride_bytes) : "memory")
// The same for data that is read once or from the second-level cache each time: leaves the
// first-level cache to the other operand.
#define SLUICE_TILE_LOAD_STREAM(tile, base, stride_bytes) \
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile ::"r"(base), "r"(stride_bytes) : "memory")
#define SLUICE_TILE_STORE(tile, base, stride_bytes) \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(base), "r"(stride_bytes) : "memory")
#define SLUICE_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::)
#define SLUICE_TILE_DOT(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

namespace sluice::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = 1024;   // 16 rows of 64 bytes
constexpr int64_t kTileRowBytes = 64;  // 32 bf16 or 16 fp32
constexpr int64_t kTileDepth = 32;     // bf16 elements of the inner dimension

// Tiles 0 to 5 hold sums and left operands, of `left_rows` rows: a product takes as many cycles as
// its left operand has rows. Tiles 6 and 7 are whole.
struct alignas(64) TileConfig {
  constexpr TileConfig() : TileConfig(kTileRows) {}
  explicit constexpr TileConfig(int64_t left_rows) {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = kTileRowBytes;
      rows[tile] = static_cast<uint8_t>(tile < 6 ? left_rows : kTileRows);
    }
  }

  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

struct TileConfigs {
  constexpr TileConfigs() {
    for (int rows = 1; rows <= kTileRows; ++rows) by_left_rows[rows - 1] = TileConfig(rows);
  }
  TileConfig by_left_rows[kTileRows];
};
constexpr TileConfigs kTileConfigs;

// Measured: tile stores that come 2,000 cycles or more after the last 512-bit multiplication or
// tile store cost 1,000 cycles, as if a unit had to wake; tile products do not keep it awake. One
// idle multiplication a step of a long product does.
inline void KeepVectorUnitAwake() {
  asm volatile("vpxord %%zmm31, %%zmm31, %%zmm31\n\tvfmadd231ps %%zmm31, %%zmm31, %%zmm31" ::
                   : "xmm31");
}

// Fetch a line into the first or the second level of cache. As assembly, since GCC 12 takes a
// function that only prefetches for one without effect and drops its calls.
inline void PrefetchToL1(const void* line) { asm volatile("prefetcht0 (%0)" ::"r"(line)); }
inline void PrefetchToL2(const void* line) { asm volatile("prefetcht1 (%0)" ::"r"(line)); }

// The tiles hold state only inside this scope, so that a parked thread has none to save.
class TileScope {
 public:
  TileScope() { SetLeftRows(kTileRows); }
  ~TileScope() { asm volatile("tilerelease" ::: "memory"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

  // From now on products of 1 to 16 left rows. Zeroes all tiles.
  void SetLeftRows(int64_t rows) {
    asm volatile("ldtilecfg %0" ::"m"(kTileConfigs.by_left_rows[rows - 1]) : "memory");
  }
};

}  // namespace
}  // namespace sluice::cpu
