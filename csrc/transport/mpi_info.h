// What the rest of the library may know about MPI and do to it without including mpi.h (transport/mpi.cc).
// Present only where the library is built with MPI.
//
// Threads: any, at any time, MPI started or not, except in a child of fork().
#pragma once

#include <string>

namespace pycomm {

struct MpiInfo {
  std::string version;       // of the library, in its own words
  std::string path;          // of the loaded libmpi, as the loader knows it
  bool initialized = false;  // stays true after finalized
  bool finalized = false;
  std::string thread_level;  // "MPI_THREAD_MULTIPLE" and so on; empty where MPI does not run
  bool ulfm = false;         // the library can report and survive dead ranks (MPIX_Comm_revoke and its kin)
};

MpiInfo mpi_info();

// Ends every process of the job with `code`. Returns only where MPI does not run, having done nothing.
void mpi_abort(int code);

}  // namespace pycomm
