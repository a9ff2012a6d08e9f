# Every library we use, all from Debian packages (scripts/setup.sh installs them). Nothing is downloaded.
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(Protobuf CONFIG QUIET)
if(NOT Protobuf_FOUND)
  find_package(Protobuf REQUIRED)
endif()
find_package(gRPC CONFIG REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(Boost 1.81 REQUIRED)  # header-only use: Beast and Asio
# Without NDEBUG a client could stop the router: Beast asserts that a last chunk never arrives as "0\r\n" and one byte.
# It goes on well without the assertion.
set_property(TARGET Boost::headers APPEND PROPERTY INTERFACE_COMPILE_DEFINITIONS BOOST_DISABLE_ASSERTS)
find_package(yaml-cpp REQUIRED)
find_package(spdlog REQUIRED)
find_package(CLI11 REQUIRED)
find_package(simdjson REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(ucx REQUIRED IMPORTED_TARGET ucx)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
if(SLUICE_TESTS)
  find_package(GTest REQUIRED)
  pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)  # the oracle of the pre-tokenizer's tests
  find_path(RAPIDCHECK_INCLUDE_DIR rapidcheck.h REQUIRED)
  find_library(RAPIDCHECK_LIBRARY rapidcheck REQUIRED)
endif()
