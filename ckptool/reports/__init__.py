"""Reports of the commands, and the rules that findings cite."""
