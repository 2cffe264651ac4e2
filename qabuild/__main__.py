from qabuild.cli import main

main()
