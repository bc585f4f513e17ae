# SPDX-License-Identifier: MIT
#
# Completion of vmfrost for bash: the command itself knows what fits.
# Goes to $(pkg-config --variable=completionsdir bash-completion)/vmfrost, or is sourced.

_vmfrost()
{
    local line=${COMP_LINE:0:COMP_POINT} current value prefix candidate
    local -a words

    # Not COMP_WORDS: bash splits those at '@', '=' and ':', too.
    read -r -a words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]} - 1]}
    value=$current
    [[ $current == --*=* ]] && value=${current#*=}
    # Bash puts each answer in the place of what stands behind the last of its word breaks.
    prefix=${current%"${current##*["$COMP_WORDBREAKS"]}"}

    COMPREPLY=()
    while IFS= read -r candidate; do
        case $candidate in
        :files | :folders)
            local kind=-f
            [[ $candidate == :folders ]] && kind=-d
            compopt -o filenames
            while IFS= read -r candidate; do
                COMPREPLY+=("$candidate")
            done < <(compgen "$kind" -- "$value")
            ;;
        *)
            [[ $candidate == *= ]] && compopt -o nospace
            COMPREPLY+=("${candidate#"$prefix"}")
            ;;
        esac
    done < <("${words[0]/#\~/$HOME}" complete -- "${words[@]:1}" 2>/dev/null)
}

complete -F _vmfrost vmfrost
