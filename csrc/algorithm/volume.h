// What the busiest rank sends, as a fraction of the vector (Algorithm::volume), where several algorithms
// share it.
#pragma once

namespace pycomm {

// All but its own part.
inline double one_pass(int size) {
  return double(size - 1) / size;
}
inline double two_passes(int size) {
  return 2 * one_pass(size);
}
inline double to_everyone(int size) {
  return size - 1;
}
inline double pass_and_own_chunk(int size) {
  return size > 1;
}
inline double one_vector(int size) {
  return size > 1;
}
inline double own_chunk(int size) {
  return size > 1 ? 1.0 / size : 0;
}
inline double own_blocks(int size) {
  return one_pass(size) / size;
}

}  // namespace pycomm
