// Reads the golden files of tests/golden/data. Test code only.
#pragma once

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "tokenizer/chat_encoder.h"

namespace sluice {

inline std::string GoldenPath(const std::string& name) {
  return std::string(SLUICE_SOURCE_DIR) + "/tests/golden/data/" + name;
}

inline std::string ReadFileOrThrow(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline std::vector<nlohmann::json> ReadJsonLines(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

inline std::vector<ChatMessage> ChatMessagesFromJson(const nlohmann::json& list) {
  std::vector<ChatMessage> messages;
  for (const nlohmann::json& item : list) {
    ChatMessage message;
    message.role = item.at("role");
    if (!item.at("content").is_null()) message.content = item.at("content");
    for (const nlohmann::json& call : item.value("tool_calls", nlohmann::json::array())) {
      message.tool_calls.push_back({call.at("id"), call.at("type"), call.at("function").at("name"),
                                    call.at("function").at("arguments")});
    }
    messages.push_back(std::move(message));
  }
  return messages;
}

}  // namespace sluice
