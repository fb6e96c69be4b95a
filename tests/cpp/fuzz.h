// Hostile input, the same in every run: a number of rounds by default, or as many as fit in the seconds that
// the environment variable PYCOMM_FUZZ_SECONDS gives to each test.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace fuzz {

using Random = std::mt19937;

inline std::size_t below(Random& random, std::size_t count) {
  return random() % count;
}

template <class Try>
void for_a_while(unsigned seed, int rounds, Try attempt) {
  Random random(seed);
  for (int round = 0; round < rounds; ++round) attempt(random);
  const char* seconds = std::getenv("PYCOMM_FUZZ_SECONDS");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds ? std::atoi(seconds) : 0);
  while (std::chrono::steady_clock::now() < end) attempt(random);
}

inline std::string bytes(Random& random, std::size_t most) {
  std::string out(below(random, most + 1), '\0');
  for (char& c : out) c = static_cast<char>(random());
  return out;
}

// `source` with one to four mistakes: bits, bytes and numbers changed; runs of it dropped, repeated, or
// replaced by a run of another of `others`.
inline std::string spoiled(Random& random, std::string source, const std::vector<std::string>& others) {
  for (std::size_t mistakes = 1 + below(random, 4); mistakes > 0; --mistakes) {
    if (source.empty()) return source;
    const std::size_t at = below(random, source.size()), run = 1 + below(random, 30);
    const std::string& other = others[below(random, others.size())];
    switch (below(random, 6)) {
      case 0:
        source[at] = static_cast<char>(source[at] ^ (1 << below(random, 8)));
        break;
      case 1:
        source[at] = static_cast<char>(random());
        break;
      case 2:  // a digit where one was, else anywhere
        source[std::min(source.find_first_of("0123456789", at), source.size() - 1)] =
            static_cast<char>('0' + below(random, 10));
        break;
      case 3:
        source.erase(at, run);
        break;
      case 4:
        source.insert(at, source.substr(at, run));
        break;
      default:
        source.replace(at, run, other, below(random, other.size()), run);
    }
  }
  return source;
}

}  // namespace fuzz
