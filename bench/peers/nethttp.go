// 1 KiB over Go's net/http: nethttp PORT; GOMAXPROCS comes from the environment.
package main

import (
	"bytes"
	"log"
	"net/http"
	"os"
)

func main() {
	body := bytes.Repeat([]byte("x"), 1024)
	answer := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(body)
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(answer)))
}
