#!/bin/sh
# A small simulated campaign, reduced. Products are in reduced/ of the present folder.
set -eu
gdask simulate campaign survey --nights 1 --filters Kshort --size 320
gdask run survey/raw -o reduced || test $? -eq 3
gdask status reduced
