#include "findings.h"

#include <dlfcn.h>

#include <cctype>
#include <cstdint>
#include <set>
#include <sstream>

#include "execution.h"

namespace cuda_on_cpu {
namespace {

constexpr size_t kMaxFindings = 20;

std::vector<std::string> findings;
std::set<std::string> seen;

std::string placeholder(const char* kind, const char* address) {
  Dl_info info{};
  dladdr(address, &info);
  std::ostringstream text;
  text << "{" << kind << " 0x" << std::hex << address - static_cast<char*>(info.dli_fbase) << "}";
  return text.str();
}

// All but the numbers outside of braces.
std::string kind_of(const std::string& text) {
  std::string kind;
  bool braces = false;
  for (const char c : text) {
    braces = c == '{' || (braces && c != '}');
    if (braces || !std::isdigit(static_cast<unsigned char>(c))) {
      kind += c;
    }
  }
  return kind;
}

}  // namespace

// The call is before the address to which it returns.
std::string code(const void* return_address) {
  return placeholder("code", static_cast<const char*>(return_address) - 1);
}

std::string function(const void* address) { return placeholder("function", static_cast<const char*>(address)); }

std::string here(const void* return_address) {
  const std::string who = current ? "thread " + std::to_string(current->number) + " of block " + std::to_string(block_number)
                                  : "the host";
  return who + " at " + code(return_address);
}

void add_finding(const std::string& text) {
  if (findings.size() < kMaxFindings && seen.insert(kind_of(text)).second) {
    findings.push_back(text + ", in " + function(kernel));
  }
}

std::vector<std::string> take_findings() {
  std::vector<std::string> result;
  result.swap(findings);
  seen.clear();
  return result;
}

}  // namespace cuda_on_cpu
