# Language level, warnings and sanitizers for every target.

option(SLUICE_TESTS "Build the tests" ON)
option(SLUICE_BENCH "Build the benchmarks" ON)
option(SLUICE_FUZZ "Build the fuzz targets with libFuzzer; needs clang" OFF)
set(SLUICE_SANITIZE "" CACHE STRING "Sanitizers, comma separated: address,undefined or thread")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")

find_program(SLUICE_CCACHE ccache)
if(SLUICE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${SLUICE_CCACHE}")
endif()

add_library(sluice_compile_options INTERFACE)
target_compile_options(sluice_compile_options INTERFACE
  -Wall -Wextra -Werror -Wnon-virtual-dtor -Woverloaded-virtual -Wno-missing-field-initializers
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)
# Bit-identical results need the compiler to leave float arithmetic as written: no contraction of
# a*b+c that depends on inlining. Kernels ask for fused operations by intrinsic.
target_compile_options(sluice_compile_options INTERFACE -ffp-contract=off)
target_include_directories(sluice_compile_options INTERFACE "${PROJECT_SOURCE_DIR}")

if(SLUICE_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "SLUICE_FUZZ needs clang: cmake --preset fuzz")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

if(SLUICE_SANITIZE)
  add_compile_options(-fsanitize=${SLUICE_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${SLUICE_SANITIZE})
  # Instrumented code confuses GCC's flow analysis (moved-from variants); the plain build has this warning.
  add_compile_options($<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  if(SLUICE_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
  if(SLUICE_SANITIZE MATCHES "thread")
    # Asio has fences, which the sanitizer does not model; its handlers are also ordered by mutexes.
    add_compile_options(-Wno-tsan)
  endif()
endif()
