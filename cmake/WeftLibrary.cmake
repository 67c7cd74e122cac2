# weft_library(FOLDER DEPENDENCIES...): the static library weft_FOLDER from FOLDER/*.c.
# weft_kernels(LIBRARY FILES...): adds the kernel passes of FILES to LIBRARY.

add_library(weft_flags INTERFACE)
target_compile_options(weft_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:C>:-Wall;-Wextra;-Wconversion;-Wmissing-prototypes;-fno-math-errno>"
  "$<$<COMPILE_LANG_AND_ID:C,GNU>:-Wno-format-truncation>" # messages are cut to their buffer on purpose
  "$<$<COMPILE_LANG_AND_ID:C,Clang>:-Wno-pass-failed>" # simd loops at -O1 (sanitizers) stay as they are
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>")
if(WEFT_WERROR)
  target_compile_options(weft_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:C,CXX>:-Werror>" "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Werror>")
endif()
if(WEFT_SANITIZE)
  target_compile_options(weft_flags INTERFACE
    "$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${WEFT_SANITIZE};-fno-omit-frame-pointer;-fno-sanitize-recover=all>")
  target_link_options(weft_flags INTERFACE -fsanitize=${WEFT_SANITIZE})
endif()
if(WEFT_FUZZ)
  target_compile_options(weft_flags INTERFACE "$<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=fuzzer-no-link>")
endif()
if(WEFT_CUDA)
  target_compile_definitions(weft_flags INTERFACE WEFT_CUDA=1)
endif()
target_include_directories(weft_flags INTERFACE ${CMAKE_SOURCE_DIR})

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(WEFT_ISA_X86 TRUE)
else()
  include(CheckCCompilerFlag)
  foreach(flag -mcpu=native -march=native)
    string(MAKE_C_IDENTIFIER "WEFT_HAVE${flag}" have)
    check_c_compiler_flag(${flag} ${have})
    if(${have} AND NOT WEFT_NATIVE_FLAG)
      set(WEFT_NATIVE_FLAG ${flag})
    endif()
  endforeach()
endif()

function(weft_add_library name sources)
  add_library(weft_${name} STATIC ${sources})
  target_link_libraries(weft_${name} PUBLIC weft_flags OpenMP::OpenMP_C m)
  foreach(dependency ${ARGN})
    if(TARGET weft_${dependency})
      target_link_libraries(weft_${name} PUBLIC weft_${dependency})
    endif()
  endforeach()
endfunction()

function(weft_library name)
  file(GLOB sources CONFIGURE_DEPENDS ${name}/*.c)
  if(NOT sources)
    return()
  endif()
  weft_add_library(${name} "${sources}" ${ARGN})
endfunction()

# A kernel file holds its op's description and its CPU kernels. It is compiled once as description by LIBRARY
# (WEFT_ISA_X86 tells which passes exist) and once for each instruction set and real type:
#   WF_KERNEL_PASS=1  WF_REAL=float|double  WF_REAL_F32=1|WF_REAL_F64=1  WF_ISA=v2|v3|v4|native
# Double serves gradcheck and the equivalence tests, so it needs no v4. The passes are optimised in debug builds
# too, or tests would take minutes; under a sanitizer they are compiled like everything else.
function(weft_kernels library)
  target_sources(${library} PRIVATE ${ARGN})
  if(WEFT_ISA_X86)
    target_compile_definitions(${library} PRIVATE WEFT_ISA_X86=1)
    set(passes v2:float v3:float v4:float v2:double v3:double)
  else()
    set(passes native:float native:double)
  endif()
  foreach(pass ${passes})
    string(REPLACE ":" ";" pass ${pass})
    list(GET pass 0 isa)
    list(GET pass 1 real)
    set(objects ${library}_${isa}_${real})
    add_library(${objects} OBJECT ${ARGN})
    target_link_libraries(${objects} PRIVATE weft_flags OpenMP::OpenMP_C weft_core_external)
    target_compile_definitions(${objects} PRIVATE WF_KERNEL_PASS=1 WF_REAL=${real} WF_ISA=${isa}
      $<IF:$<STREQUAL:${real},float>,WF_REAL_F32,WF_REAL_F64>=1)
    if(isa STREQUAL "native")
      target_compile_options(${objects} PRIVATE ${WEFT_NATIVE_FLAG})
    else()
      target_compile_definitions(${objects} PRIVATE WEFT_ISA_X86=1)
      target_compile_options(${objects} PRIVATE -march=x86-64-${isa})
    endif()
    if(isa STREQUAL "v4")
      target_compile_options(${objects} PRIVATE -mprefer-vector-width=512)
    endif()
    # No kernel asks which floating-point exceptions were raised. Told so, gcc vectorises loops with selects, such as
    # an exponential's limits, without AVX-512's masks too.
    target_compile_options(${objects} PRIVATE -ffp-contract=fast -fno-trapping-math)
    if(NOT WEFT_SANITIZE)
      target_compile_options(${objects} PRIVATE -O3)
    endif()
    target_sources(${library} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
endfunction()
