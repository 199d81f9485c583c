// Go's net/http: nethttp PORT [TEST [CERTIFICATE]]; GOMAXPROCS comes from the environment.
// Without TEST 1 KiB for every request; with it, tcpserver's test of that number.
package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

// padded by PKCS#7 and encrypted by AES-128-CBC, the random vector first.
func encrypt(text []byte) []byte {
	block, err := aes.NewCipher([]byte("0123456789ABCDEF"))
	if err != nil {
		log.Fatal(err)
	}
	padding := aes.BlockSize - len(text)%aes.BlockSize
	padded := append(append([]byte{}, text...), bytes.Repeat([]byte{byte(padding)}, padding)...)
	out := make([]byte, aes.BlockSize+len(padded))
	if _, err := rand.Read(out[:aes.BlockSize]); err != nil {
		log.Fatal(err)
	}
	cipher.NewCBCEncrypter(block, out[:aes.BlockSize]).CryptBlocks(out[aes.BlockSize:], padded)
	return out
}

func main() {
	test, certificate := "", ""
	if len(os.Args) > 2 {
		test = os.Args[2]
	}
	if len(os.Args) > 3 {
		certificate = os.Args[3]
	}
	size := map[string]int{"5": 128, "6": 16384}[test]
	if size == 0 {
		size = 1024
	}
	body := bytes.Repeat([]byte("a"), size)
	answer := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		if test == "3" || test == "4" {
			w.Write(encrypt(body))
		} else {
			w.Write(body)
		}
		if test == "5" {
			// Answered first, slept then, as the others do.
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	}
	// A client that leaves in the middle of a handshake is no news here.
	quiet := log.New(io.Discard, "", 0)
	server := &http.Server{
		Addr: "127.0.0.1:" + os.Args[1], Handler: http.HandlerFunc(answer), ErrorLog: quiet,
	}
	if certificate != "" {
		log.Fatal(server.ListenAndServeTLS(certificate, certificate))
	}
	log.Fatal(server.ListenAndServe())
}
