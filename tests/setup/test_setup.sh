#!/usr/bin/env bash
# usage: test_setup.sh SOURCE YAML_INCLUDE
# What a user is told where a library is missing and cannot be installed, and that it is found in CMAKE_PREFIX_PATH
# and where an environment module says. The folder that holds yaml.h is hidden from CMake to play such a machine.
set -euo pipefail
source=$1 hidden=$2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "$1" >&2
  [ ! -e "$work/out" ] || cat "$work/out" >&2
  exit 1
}

# The files that configuring reads before it compiles anything, and a PATH without apt-get.
mkdir "$work/weft" "$work/bin"
cp -r "$source/CMakeLists.txt" "$source/cmake" "$source/setup.sh" "$work/weft"
IFS=: read -ra folders <<<"$PATH"
for folder in "${folders[@]}"; do
  [ ! -d "$folder" ] || find "$folder" -maxdepth 1 ! -type d ! -name 'apt*' -exec ln -s -t "$work/bin" {} + 2>/dev/null || true
done
echo "set(CMAKE_IGNORE_PATH $hidden)" >"$work/hide.cmake"
export PATH=$work/bin CMAKE_TOOLCHAIN_FILE=$work/hide.cmake
unset CMAKE_GENERATOR CMAKE_PREFIX_PATH

if "$work/weft/setup.sh" train >"$work/out" 2>&1; then fail "set-up went through without yaml.h"; fi
for text in "yaml: config files" "header yaml.h" "Looked under: " "libyaml-dev" "hint: " "no apt"; do
  grep -qF "$text" "$work/out" || fail "the message lacks: $text"
done

mkdir -p "$work/prefix/include" "$work/module/include"
ln -s "$hidden"/* "$work/prefix/include"
rm "$work/prefix/include/yaml.h"
ln -s "$hidden/yaml.h" "$work/module/include"

# Everything but yaml.h comes from CMAKE_PREFIX_PATH now.
export CMAKE_PREFIX_PATH=$work/prefix
if cmake -S "$work/weft" -B "$work/build" >"$work/out" 2>&1; then fail "configured without yaml.h"; fi
[ "$(cat "$work/build/missing-packages.txt")" = libyaml-dev ] || fail "only yaml should be missing"

# An environment module names its folder.
EBROOTYAML=$work/module cmake -S "$work/weft" -B "$work/build" >"$work/out" 2>&1 || true
grep -q "^YAML_INCLUDE_DIR:PATH=$work/module/include" "$work/build/CMakeCache.txt" || fail "EBROOTYAML was not used"
[ ! -e "$work/build/missing-libraries.txt" ] || fail "libraries are still missing"

# A file that is not there is named before anything is done.
if "$work/weft/setup.sh" train "$work/none.txt" >"$work/out" 2>&1; then fail "trained on nothing"; fi
grep -qF "cannot read $work/none.txt" "$work/out" || fail "the missing file is not named"

# With an apt, played by scripts: what shows as missing only after an installation is installed too, and what is still
# missing after it ends the set-up.
mkdir "$work/play"
# shellcheck disable=SC2016 # a line of the script it writes
echo 'echo "$*" >>"$PLAY/apt"' >"$work/play/apt-get"
echo '"$@"' >"$work/play/sudo"
cat >"$work/play/cmake" <<'CMAKE'
n=$(cat "$PLAY/n" 2>/dev/null || echo 0)
echo $((n + 1)) >"$PLAY/n"
rm -f build/missing-*
missing=(${MISSING:-})
[ "$n" -lt ${#missing[@]} ] || exit 0
echo "${missing[n]}" | tee build/missing-libraries.txt >build/missing-packages.txt
exit 1
CMAKE
for name in apt-get sudo cmake; do
  sed -i '1i #!/usr/bin/env bash' "$work/play/$name"
  chmod +x "$work/play/$name"
done
rm -rf "$work/weft/build"
touch "$work/text"
play() { PLAY=$work/play PATH=$work/play:$PATH MISSING=$1 "$work/weft/setup.sh" train "$work/text" >"$work/out" 2>&1 || true; }
play "one two"
[ "$(sed -n 's/.*install .* //p' "$work/play/apt" | xargs)" = "one two" ] || fail "one and two should be installed"
grep -q "^building" "$work/out" || fail "the set-up did not go on after two installations"
rm "$work/play/n"
play "one one"
grep -q "configuring failed after the installation" "$work/out" || fail "a package that does not help was not the end"
echo "missing libraries are named, prefixes and modules are used"
