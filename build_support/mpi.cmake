# Finds the MPI that mpi_choice.py chose, as MPI::MPI_C, and sets PYCOMM_RPATH, the properties with which
# the installed module finds it again.
#
# MPI_C_COMPILER given by hand wins and counts as the site's.

if(NOT MPI_C_COMPILER OR PYCOMM_MPI_CHOSEN)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/build_support/mpi_choice.py" mpicc
    OUTPUT_VARIABLE mpi_choice OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_VARIABLE mpi_choice_error RESULT_VARIABLE mpi_choice_status)
  if(NOT mpi_choice_status EQUAL 0)
    message(FATAL_ERROR "${mpi_choice_error}")
  endif()
  list(GET mpi_choice 0 mpi_wheel)
  list(GET mpi_choice 1 mpi_compiler)
  if(mpi_compiler)
    set(mpi_tried " (tried ${mpi_compiler})")
  endif()
  if(mpi_compiler AND NOT mpi_compiler STREQUAL "${MPI_C_COMPILER}")
    # What FindMPI remembers belongs to another MPI, perhaps of an environment that is gone.
    get_cmake_property(cached CACHE_VARIABLES)
    list(FILTER cached INCLUDE REGEX "^MPI_")
    foreach(variable IN LISTS cached)
      unset(${variable} CACHE)
    endforeach()
    set(MPI_C_COMPILER "${mpi_compiler}" CACHE FILEPATH "The MPI compiler wrapper" FORCE)
    set(PYCOMM_MPI_CHOSEN ON CACHE INTERNAL "MPI_C_COMPILER comes from mpi_choice.py")
  endif()
endif()

find_package(MPI COMPONENTS C)
if(NOT MPI_C_FOUND)
  message(FATAL_ERROR "No usable MPI${mpi_tried}: put its mpicc on PATH, name it by MPICC or MPI_HOME, "
    "or leave PYCOMM_MPI unset to install one from the package index")
endif()
list(GET MPI_C_LIBRARIES 0 mpi_library)
if(mpi_wheel)
  message(STATUS "MPI: ${mpi_library}, of the package ${mpi_wheel}")
  # The wrapper's options name the directory of a build environment that will be deleted; whoever could create
  # it again would choose our libraries. Installed, libmpi lies in lib/ and this module three levels below it.
  set_target_properties(MPI::MPI_C PROPERTIES INTERFACE_LINK_OPTIONS "")
  set(PYCOMM_RPATH INSTALL_RPATH "$ORIGIN/../../..")
else()
  message(STATUS "MPI: ${mpi_library}, of this machine")
  set(PYCOMM_RPATH INSTALL_RPATH_USE_LINK_PATH ON)
endif()
