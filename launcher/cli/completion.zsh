#compdef launcher
_launcher() {
    local -a found
    local line
    for line in "${(@f)$("${words[1]}" complete-words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] && found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    if (( $#found )); then _describe launcher found; else _files; fi
}
if [[ $funcstack[1] == _launcher ]]; then _launcher "$@"; else compdef _launcher launcher; fi
