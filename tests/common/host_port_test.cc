#include "common/host_port.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

TEST(HostPortTest, BracketsAreForIpv6Alone) {
  EXPECT_EQ(JoinHostPort("10.0.0.7", 80), "10.0.0.7:80");
  EXPECT_EQ(JoinHostPort("router.example", 80), "router.example:80");
  EXPECT_EQ(JoinHostPort("::", 0), "[::]:0");
  EXPECT_EQ(JoinHostPort("[::1]", 80), "[::1]:80");
}

TEST(HostPortTest, SplitsWhatWasJoined) {
  for (const char* host : {"10.0.0.7", "router.example", "::", "fe80::1%eth0"}) {
    const auto parts = SplitHostPort(JoinHostPort(host, 8003));
    ASSERT_TRUE(parts.has_value()) << host;
    EXPECT_EQ(parts->host, host);
    EXPECT_EQ(parts->port, 8003);
  }
}

TEST(HostPortTest, RefusesWhatIsNotHostAndPort) {
  for (const char* text : {"", ":", "host", ":80", "host:", "host:0", "host:65536", "host:80x",
                           "::1:80", "[]:80", "[::1]80"}) {
    EXPECT_FALSE(SplitHostPort(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace sluice
