#!/bin/sh
echo I run
